#include "arena.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <stdexcept>

namespace kosine {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

char* map(std::size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(at);
}

}  // namespace

Guard guard_named(const std::string& name) {
  if (name == "none") return Guard::kNone;
  if (name == "after") return Guard::kAfter;
  if (name == "before") return Guard::kBefore;
  throw std::invalid_argument("unknown guard '" + name + "'; known: none, after, before");
}

Arena::Arena(std::size_t bytes, Guard guard) : capacity_(bytes), guard_(guard) {
  if (guard != Guard::kNone || bytes == 0) return;
  // Small arenas need no huge page, and would waste most of one.
  const bool huge = bytes >= kHugePage;
  const std::size_t size = round_up(bytes, huge ? kHugePage : kPage);
  const std::size_t mapped = huge ? size + kHugePage : size;
  mappings_.reserve(1);
  char* at = map(mapped);
  base_ = at;
  if (huge) {
    // Give back what lies outside the aligned middle, so that it counts for nothing.
    base_ += -reinterpret_cast<std::uintptr_t>(at) & (kHugePage - 1);
    if (base_ != at) munmap(at, static_cast<std::size_t>(base_ - at));
    char* end = base_ + size;
    if (end != at + mapped) munmap(end, static_cast<std::size_t>(at + mapped - end));
    madvise(base_, size, MADV_HUGEPAGE);  // a hint: without huge pages it only runs slower
  }
  mappings_.push_back({base_, size});
}

Arena::~Arena() {
  for (const Mapping& mapping : mappings_) munmap(mapping.at, mapping.bytes);
}

void Arena::swap(Arena& other) noexcept {
  std::swap(mappings_, other.mappings_);
  std::swap(base_, other.base_);
  std::swap(capacity_, other.capacity_);
  std::swap(used_, other.used_);
  std::swap(guard_, other.guard_);
}

void* Arena::take(std::size_t bytes) {
  bytes = round_up(bytes, kAlignment);
  if (bytes > capacity_ - used_) throw std::logic_error("arena: more taken than was planned");
  used_ += bytes;
  if (guard_ != Guard::kNone) return take_guarded(bytes);
  return base_ + used_ - bytes;
}

void* Arena::take_guarded(std::size_t bytes) {
  const std::size_t pages = round_up(bytes, kPage);
  const std::size_t mapped = pages + 2 * kPage;
  mappings_.reserve(mappings_.size() + 1);
  char* at = map(mapped);
  mappings_.push_back({at, mapped});
  if (mprotect(at, kPage, PROT_NONE) != 0 ||
      mprotect(at + kPage + pages, kPage, PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
  return guard_ == Guard::kBefore ? at + kPage : at + kPage + pages - bytes;
}

void Arena::seal() {
  if (guard_ == Guard::kNone && !mappings_.empty()) {
    mprotect(mappings_[0].at, mappings_[0].bytes, PROT_READ);  // a safeguard, not a need
  }
}

}  // namespace kosine
