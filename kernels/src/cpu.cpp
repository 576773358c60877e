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
    {Isa::kAvxVnni, "avx_vnni"},
    {Isa::kAvx512, "avx512"},
    {Isa::kAvx512Vnni, "avx512_vnni"},
    {Isa::kAvx512Bf16, "avx512_bf16"},
    {Isa::kAmxBf16, "amx_bf16"},
    {Isa::kAmxInt8, "amx_int8"},
    {Isa::kAmxBf16Emulated, "amx_bf16_emulated"},
    {Isa::kAmxInt8Emulated, "amx_int8_emulated"},
};

// No level of any machine: there for those who ask for it by name, and not in any list.
bool emulated(Isa isa) { return isa == Isa::kAmxBf16Emulated || isa == Isa::kAmxInt8Emulated; }

// Best last.
constexpr const Kernels* kTables[] = {
    &kAvx2Float32,         &kAvx2W8A16,       &kAvx2Int8,       &kAvxVnniW8A16,
    &kAvxVnniInt8,         &kAvx512Float32,   &kAvx512VnniW8A16, &kAvx512VnniInt8,
    &kAvx512Bfloat16,      &kAvx512Bf16W8A16, &kAvx512Bf16Int8, &kAmxBfloat16Emulated,
    &kAmxW8A16Emulated,    &kAmxInt8Emulated, &kAmxBfloat16,    &kAmxW8A16,
    &kAmxInt8};

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

struct Features {
  bool avx2 = false, avx_vnni = false, avx512 = false, vnni = false, bf16 = false;
  bool amx_bf16 = false, amx_int8 = false;
};

// What the processor has, by cpuid, and what the operating system saves, by xgetbv: a register
// file that it does not save is not there. __builtin_cpu_supports reads a table of the compiler's
// runtime, which not every toolchain fills: with zig's every level was missing.
const Features& features() {
  static const Features found = [] {
    constexpr unsigned kOsxsave = 1u << 27, kFma = 1u << 12;                    // leaf 1, ecx
    constexpr unsigned kAvx2 = 1u << 5;                                         // leaf 7, ebx
    constexpr unsigned kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;     // F, DQ, BW, VL
    constexpr unsigned kVnni = 1u << 11;                                        // ecx
    constexpr unsigned kAmxBf16 = 1u << 22 | 1u << 24;                          // edx: with tiles
    constexpr unsigned kAmxInt8 = 1u << 25;                                     // edx
    constexpr unsigned kAvxVnni = 1u << 4, kBf16 = 1u << 5;                     // leaf 7.1, eax
    constexpr unsigned kYmm = 3u << 1, kZmm = kYmm | 7u << 5, kTiles = 3u << 17;  // of XCR0
    Features f;
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kOsxsave) == 0) return f;
    const bool fma = (ecx & kFma) != 0;
    unsigned saved = 0, high = 0;
    asm volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const auto saves = [&](unsigned state) { return (saved & state) == state; };
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return f;
    const unsigned subleaves = eax;
    f.avx2 = fma && (ebx & kAvx2) != 0 && saves(kYmm);
    f.avx512 = f.avx2 && (ebx & kAvx512) == kAvx512 && saves(kZmm);
    f.vnni = f.avx512 && (ecx & kVnni) != 0;
    const bool tiles = (edx & kAmxBf16) == kAmxBf16 && saves(kTiles);
    const bool bytes = (edx & kAmxInt8) != 0;
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
      f.avx_vnni = f.avx2 && (eax & kAvxVnni) != 0;
      f.bf16 = f.vnni && (eax & kBf16) != 0;
    }
    f.amx_bf16 = f.bf16 && tiles;
    f.amx_int8 = f.amx_bf16 && bytes;
    return f;
  }();
  return found;
}

// Tiles are large: the system keeps them for a process only after it has asked, once, and may
// refuse. Children of fork() inherit the answer.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool allowed =
      features().amx_bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
}

bool present(Isa isa) {
  switch (isa) {
    case Isa::kAvx2: return features().avx2;
    case Isa::kAvxVnni: return features().avx_vnni;
    case Isa::kAvx512: return features().avx512;
    case Isa::kAvx512Vnni: return features().vnni;
    case Isa::kAvx512Bf16: return features().bf16;
    case Isa::kAmxBf16: return may_use_tiles();
    case Isa::kAmxInt8: return features().amx_int8 && may_use_tiles();
    case Isa::kAmxBf16Emulated:
    case Isa::kAmxInt8Emulated: return features().bf16;
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
    const Isa isa = (*table)->isa;
    if (emulated(isa) && !emulated(highest)) continue;
    if ((*table)->dtype == dtype && isa <= highest && present(isa)) return **table;
  }
  throw Unavailable{"dtype " + std::string(name_of(dtype)) + " does not run at ISA level '" +
                    name_of(highest) + "'; it needs avx512_bf16 or above; use float32"};
}

}  // namespace kosine
