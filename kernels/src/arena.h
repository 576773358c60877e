// Memory for packed weights and for workspaces: few large mappings in huge pages.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace kosine {

// Where a test wants an unmapped page: against the end or the start of every buffer.
enum class Guard { kNone, kAfter, kBefore };
Guard guard_named(const std::string& name);  // throws std::invalid_argument

constexpr std::size_t kAlignment = 64;

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

class Arena {
 public:
  Arena() = default;
  // Room for buffers of `bytes` in all, each counted as a multiple of kAlignment.
  // Throws std::bad_alloc.
  Arena(std::size_t bytes, Guard guard);
  ~Arena();
  Arena(Arena&& other) noexcept { swap(other); }
  Arena& operator=(Arena&& other) noexcept {
    swap(other);
    return *this;
  }

  // A buffer aligned to kAlignment (zero the first time that its memory is handed out).
  // Throws std::logic_error where `bytes` of the constructor are used up.
  void* take(std::size_t bytes);
  template <class T>
  T* take(std::size_t count) {
    return static_cast<T*>(take(count * sizeof(T)));
  }
  void rewind() { used_ = 0; }  // hand out the same memory again; not with guards
  void seal();                  // read-only from now on
  std::size_t capacity() const { return capacity_; }

 private:
  struct Mapping {
    void* at;
    std::size_t bytes;
  };
  void swap(Arena& other) noexcept;
  void* take_guarded(std::size_t bytes);

  std::vector<Mapping> mappings_;
  char* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
  Guard guard_ = Guard::kNone;
};

}  // namespace kosine
