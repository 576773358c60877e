#include "cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <iterator>
#include <stdexcept>

namespace kosine {
namespace {

struct Level {
  Isa isa;
  const char* name;
};
constexpr Level kLevels[] = {
    {Isa::kAvx2, "avx2"},
    {Isa::kAvx512, "avx512"},
    {Isa::kAvx512Vnni, "avx512_vnni"},
    {Isa::kAvx512Bf16, "avx512_bf16"},
    {Isa::kAmxBf16, "amx_bf16"},
    {Isa::kAmxBf16Emulated, "amx_bf16_emulated"},
};

// No level of any machine: there for those who ask for it by name, and not in any list.
bool emulated(Isa isa) { return isa == Isa::kAmxBf16Emulated; }

// Best last.
constexpr const Kernels* kTables[] = {
    &kAvx2Float32,    &kAvx2W8A16,      &kAvx2Int8,        &kAvx512Float32, &kAvx512W8A16,
    &kAvx512VnniInt8, &kAvx512Bfloat16, &kAvx512Bf16W8A16, &kAmxBfloat16,   &kAmxBfloat16Emulated};

struct Named {
  Dtype dtype;
  const char* name;
};
constexpr Named kDtypes[] = {
    {Dtype::kFloat32, "float32"},
    {Dtype::kBfloat16, "bfloat16"},
    {Dtype::kW8A16, "w8a16"},
    {Dtype::kInt8, "int8"},
};

// Tiles are large: the system keeps them for a process only after it has asked, once, and may
// refuse. Children of fork() inherit the answer.
bool may_use_tiles() {
  static const bool allowed = [] {
    constexpr unsigned kOsxsave = 1u << 27, kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
    constexpr unsigned kTileState = 3u << 17;  // in XCR0: configuration and data
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kOsxsave) == 0) return false;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
    unsigned low = 0, high = 0;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & kTileState) != kTileState) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return allowed;
}

// The builtins ask the operating system too: a register file that it does not save is not there.
bool present(Isa isa) {
  __builtin_cpu_init();
  switch (isa) {
    case Isa::kAvx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return present(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Vnni: return present(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Bf16:
      return present(Isa::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmxBf16: return present(Isa::kAvx512Bf16) && may_use_tiles();
    case Isa::kAmxBf16Emulated: return present(Isa::kAvx512Bf16);
  }
  return false;
}

std::string known_names() {
  std::string names;
  for (const Level& level : kLevels) {
    if (!emulated(level.isa)) names += (names.empty() ? "" : ", ") + std::string(level.name);
  }
  return names;
}

std::string present_names() {
  std::string names;
  for (Isa isa : isa_levels()) names += (names.empty() ? "" : ", ") + std::string(name_of(isa));
  return names.empty() ? "none" : names;
}

Isa forced_level(const std::string& name) {
  for (const Level& level : kLevels) {
    if (name != level.name) continue;
    if (!present(level.isa)) {
      throw Unavailable{"ISA level '" + name + "' is not on this machine; it has: " +
                        present_names() + "; choose one of these or unset it"};
    }
    return level.isa;
  }
  throw std::invalid_argument("unknown ISA level '" + name + "'; known: " + known_names() +
                              "; choose one of these or unset it");
}

}  // namespace

const char* name_of(Isa isa) {
  for (const Level& level : kLevels) {
    if (level.isa == isa) return level.name;
  }
  return "?";
}

const char* name_of(Dtype dtype) {
  for (const Named& known : kDtypes) {
    if (known.dtype == dtype) return known.name;
  }
  return "?";
}

Dtype dtype_named(const std::string& name) {
  std::string known;
  for (const Named& one : kDtypes) {
    if (name == one.name) return one.dtype;
    known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  throw std::invalid_argument("unknown dtype '" + name + "'; known: " + known +
                              "; choose one of these");
}

std::vector<Isa> isa_levels() {
  std::vector<Isa> levels;
  for (const Level& level : kLevels) {
    if (!emulated(level.isa) && present(level.isa)) levels.push_back(level.isa);
  }
  return levels;
}

const Kernels& select_kernels(Dtype dtype, const std::string& level) {
  const std::vector<Isa> levels = isa_levels();
  if (level.empty() && levels.empty()) {
    throw Unavailable{"this processor has no AVX2; native kernels need one of: " +
                      known_names() + "; use another backend"};
  }
  const Isa highest = level.empty() ? levels.back() : forced_level(level);
  for (auto table = std::rbegin(kTables); table != std::rend(kTables); ++table) {
    if ((*table)->dtype == dtype && (*table)->isa <= highest) return **table;
  }
  throw Unavailable{"dtype " + std::string(name_of(dtype)) + " does not run at ISA level '" +
                    name_of(highest) + "'; it needs avx512_bf16 or above; use float32"};
}

}  // namespace kosine
