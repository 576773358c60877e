// The tile unit of AMX, in eight operations: eight registers of up to 16 rows of 64 bytes.
//
// With KOSINE_AMX_EMULATED the same operations are done in AVX512, on processors without AMX: a
// thread's tiles are then ordinary memory. The emulation follows the instruction set reference
// bit by bit, and ends the process where an instruction would fault: on tiles that have no shape,
// or do not fit one another.
//
// The instructions are written out, since GCC's intrinsics take a register as text, not as a
// template argument, and do not tell the compiler that a load reads memory: stores to what it
// reads could be moved behind it. None of them names a clobbered register; no compiler uses tiles
// of its own accord.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(KOSINE_AMX_EMULATED)
#include <immintrin.h>
#endif

namespace {

constexpr std::size_t kTileHeight = 16;     // rows, at most
constexpr std::size_t kTileRowBytes = 64;   // at most
constexpr std::size_t kTileBytes = kTileHeight * kTileRowBytes;

// The operand of ldtilecfg.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};  // of the eight tiles; the rest stays zero
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

#if !defined(KOSINE_AMX_EMULATED)

[[gnu::always_inline]] inline void tile_configure(const TileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// Back to the state in which a thread has no tiles for the system to save.
[[gnu::always_inline]] inline void tile_release() { asm volatile("tilerelease" : : : "memory"); }

template <int T>
[[gnu::always_inline]] inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

// `stride`: bytes between rows.
template <int T>
[[gnu::always_inline]] inline void tile_load(const void* from, std::size_t stride) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(stride) : "memory");
}

template <int T>
[[gnu::always_inline]] inline void tile_store(void* to, std::size_t stride) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(stride) : "memory");
}

// C (rows, columns) float += A (rows, pairs) x B (pairs, columns), A and B of bfloat16 pairs.
template <int C, int A, int B>
[[gnu::always_inline]] inline void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

// C (rows, columns) int32 += A (rows, fours) x B (fours, columns), A of four unsigned bytes, B of
// four signed ones. Sums that int32 does not hold wrap around.
template <int C, int A, int B>
[[gnu::always_inline]] inline void tile_dot_bytes() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#else

struct TileUnit {
  bool configured;
  std::size_t rows[8];
  std::size_t row_bytes[8];
  alignas(64) std::uint8_t data[8][kTileHeight][kTileRowBytes];
};
thread_local TileUnit tile_unit{};

inline void tile_fault_unless(bool right) {
  if (!right) __builtin_trap();
}

inline void tile_release() { tile_unit = {}; }

inline void tile_configure(const TileConfig& config) {
  tile_release();
  if (config.palette == 0) return;
  tile_fault_unless(config.palette == 1);
  for (std::uint8_t byte : config.reserved) tile_fault_unless(byte == 0);
  for (int t = 0; t < 16; ++t) {
    const bool empty = config.rows[t] == 0;
    tile_fault_unless(config.rows[t] <= kTileHeight && config.row_bytes[t] <= kTileRowBytes &&
                      empty == (config.row_bytes[t] == 0) && (t < 8 || empty));
    if (t >= 8) continue;
    tile_unit.rows[t] = config.rows[t];
    tile_unit.row_bytes[t] = config.row_bytes[t];
  }
  tile_unit.configured = true;
}

// The unit, where tile T has been given a shape.
template <int T>
TileUnit& tile_unit_with() {
  static_assert(T >= 0 && T < 8);
  TileUnit& unit = tile_unit;
  tile_fault_unless(unit.configured && unit.rows[T] != 0);
  return unit;
}

template <int T>
void tile_zero() {
  TileUnit& unit = tile_unit_with<T>();
  __builtin_memset(unit.data[T], 0, sizeof unit.data[T]);
}

template <int T>
void tile_load(const void* from, std::size_t stride) {
  TileUnit& unit = tile_unit_with<T>();
  // What lies beyond the tile's shape is zero: since tiles were configured nothing wrote it.
  for (std::size_t r = 0; r < unit.rows[T]; ++r) {
    __builtin_memcpy(unit.data[T][r], static_cast<const char*>(from) + r * stride,
                     unit.row_bytes[T]);
  }
}

template <int T>
void tile_store(void* to, std::size_t stride) {
  TileUnit& unit = tile_unit_with<T>();
  for (std::size_t r = 0; r < unit.rows[T]; ++r) {
    __builtin_memcpy(static_cast<char*>(to) + r * stride, unit.data[T][r], unit.row_bytes[T]);
  }
}

// Flushes subnormal operands and results to zero and rounds to nearest even, as the tile unit
// does whatever the program's own modes are. Memory is a barrier to the compiler at both ends, and
// all arithmetic between them goes from memory to memory.
class TileRounding {
 public:
  TileRounding() : before_(_mm_getcsr()) {
    _mm_setcsr(kFlushZeroRoundNearestNoTraps);
    asm volatile("" : : : "memory");
  }
  ~TileRounding() {
    asm volatile("" : : : "memory");
    _mm_setcsr(before_);
  }
  TileRounding(const TileRounding&) = delete;
  TileRounding& operator=(const TileRounding&) = delete;

 private:
  static constexpr unsigned kFlushZeroRoundNearestNoTraps = 0x9fc0;
  unsigned before_;
};

// The unit, where the three tiles fit one another.
template <int C, int A, int B>
TileUnit& tile_unit_for_dot() {
  static_assert(C != A && C != B && A != B);
  TileUnit& unit = tile_unit_with<C>();
  tile_unit_with<A>();
  tile_unit_with<B>();
  tile_fault_unless(unit.rows[C] == unit.rows[A] && unit.row_bytes[C] == unit.row_bytes[B] &&
                    unit.row_bytes[A] == 4 * unit.rows[B] && unit.row_bytes[C] % 4 == 0);
  return unit;
}

// Which words of a row belong to a tile.
inline __mmask16 tile_columns(const TileUnit& unit, int tile) {
  return static_cast<__mmask16>((1u << unit.row_bytes[tile] / 4) - 1);
}

// A word of a row, once for each column.
inline __m512i tile_word(const std::uint8_t* row, std::size_t k) {
  std::int32_t word;
  __builtin_memcpy(&word, row + 4 * k, sizeof word);
  return _mm512_set1_epi32(word);
}

// Each half of the pairs is summed by itself, in fused multiply-adds from zero; then the sum of
// the two is added to C.
template <int C, int A, int B>
void tile_dot() {
  TileUnit& unit = tile_unit_for_dot<C, A, B>();
  const __mmask16 columns = tile_columns(unit, C);
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const TileRounding rounding;
  for (std::size_t m = 0; m < unit.rows[C]; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (std::size_t k = 0; k < unit.rows[B]; ++k) {
      const __m512i a = tile_word(unit.data[A][m], k);
      const __m512i b = _mm512_load_si512(unit.data[B][k]);
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, upper)),
                            _mm512_castsi512_ps(_mm512_and_si512(b, upper)), odd);
    }
    const __m512 sum = _mm512_add_ps(_mm512_load_ps(unit.data[C][m]), _mm512_add_ps(even, odd));
    _mm512_store_ps(unit.data[C][m], _mm512_maskz_mov_ps(columns, sum));
  }
}

// Not by vpdpbusd, which is what the result is held against. The sum of two products of bytes,
// each widened to 16 bits, has room in 32.
template <int C, int A, int B>
void tile_dot_bytes() {
  TileUnit& unit = tile_unit_for_dot<C, A, B>();
  const __mmask16 columns = tile_columns(unit, C);
  const __m512i low = _mm512_set1_epi16(0xff);
  for (std::size_t m = 0; m < unit.rows[C]; ++m) {
    __m512i sum = _mm512_load_si512(unit.data[C][m]);
    for (std::size_t k = 0; k < unit.rows[B]; ++k) {
      const __m512i a = tile_word(unit.data[A][m], k);
      const __m512i b = _mm512_load_si512(unit.data[B][k]);
      const __m512i even = _mm512_madd_epi16(_mm512_and_si512(a, low),
                                             _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
      const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8));
      sum = _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
    }
    _mm512_store_si512(unit.data[C][m], _mm512_maskz_mov_epi32(columns, sum));
  }
}

#endif

}  // namespace
