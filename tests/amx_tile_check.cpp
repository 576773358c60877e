// The eight operations of amx_tile.h against a scalar model of the tile unit, bit by bit. Built
// with KOSINE_AMX_EMULATED it checks the emulation, without it the processor's own tiles.
//
// Its first argument names the products, "bfloat16" or "int8". Prints "right"; with the name of a
// fault behind it it commits that fault instead, which must end the process.
#include "amx_tile.h"

#include <sys/syscall.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>

namespace {

struct Shape {
  int rows, words, columns;  // a word is a pair of bfloat16, or four bytes
};

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

float flushed(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
}

float widened(std::uint16_t x) { return flushed(float_of(std::uint32_t{x} << 16)); }

TileConfig shapes(Shape shape) {
  TileConfig config;
  const int rows[3] = {shape.rows, shape.rows, shape.words};
  const int row_bytes[3] = {4 * shape.columns, 4 * shape.words, 4 * shape.columns};
  for (int t = 0; t < 3; ++t) {
    config.rows[t] = static_cast<std::uint8_t>(rows[t]);
    config.row_bytes[t] = static_cast<std::uint16_t>(row_bytes[t]);
  }
  return config;
}

#define CHECK(condition)                                                      \
  do {                                                                        \
    if (!(condition)) {                                                       \
      std::printf("line %d: %s does not hold\n", __LINE__, #condition);       \
      return false;                                                           \
    }                                                                         \
  } while (false)

// C += A B, where exponents reach from subnormal to large: about a third of the products need
// rounding in the sum, some vanish.
bool check_dot(Shape shape, std::mt19937& random) {
  constexpr int kStride = 80;  // bytes; wider than any tile
  alignas(64) std::uint16_t a[16][kStride / 2], b[16][kStride / 2];
  alignas(64) float c[16][kStride / 4], found[16][kStride / 4];
  const auto number = [&] {
    const unsigned exponent = random() % 8 == 0 ? random() % 70 : 110 + random() % 40;
    return static_cast<std::uint16_t>((random() & 0x807f) | exponent << 7);
  };
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < kStride / 2; ++j) a[i][j] = number(), b[i][j] = number();
    for (int j = 0; j < kStride / 4; ++j) {
      c[i][j] = flushed(float_of(std::uint32_t{number()} << 16 | (random() & 0xffff)));
      found[i][j] = 12345.0f;  // what a store must leave alone
    }
  }
  const TileConfig config = shapes(shape);
  tile_configure(config);
  tile_load<0>(c, kStride);
  tile_load<1>(a, kStride);
  tile_load<2>(b, kStride);
  // The modes of the program are not those of the tile unit, and stay what they are.
  const unsigned before = _mm_getcsr(), toward_zero = before | 0x6000;
  _mm_setcsr(toward_zero);
  tile_dot<0, 1, 2>();
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  CHECK((after & ~0x3fu) == (toward_zero & ~0x3fu));
  tile_store<0>(found, kStride);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < kStride / 4; ++n) {
      if (m >= shape.rows || n >= shape.columns) {
        CHECK(found[m][n] == 12345.0f);
        continue;
      }
      float half[2] = {0.0f, 0.0f};
      for (int k = 0; k < shape.words; ++k) {
        for (int i = 0; i < 2; ++i) {
          half[i] = flushed(std::fma(widened(a[m][2 * k + i]), widened(b[k][2 * n + i]), half[i]));
        }
      }
      const float expected = flushed(c[m][n] + flushed(half[0] + half[1]));
      CHECK(bits_of(found[m][n]) == bits_of(expected));
    }
  }
  tile_release();
  return true;
}

// C += A B in bytes: of all values, or of the ends of their ranges alone, where four products do not
// fit into 16 bits; onto sums of all values, or so near the ends of int32 that they wrap around.
bool check_dot_bytes(Shape shape, bool extreme, std::mt19937& random) {
  constexpr int kStride = 80;
  constexpr std::int32_t kUntouched = 12345;
  alignas(64) std::uint8_t a[16][kStride];
  alignas(64) std::int8_t b[16][kStride];
  alignas(64) std::int32_t c[16][kStride / 4], found[16][kStride / 4];
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < kStride; ++j) {
      a[i][j] = static_cast<std::uint8_t>(extreme ? 255 : random());
      b[i][j] = static_cast<std::int8_t>(extreme ? (j / 4 % 2 == 0 ? 127 : -128) : random());
    }
    for (int j = 0; j < kStride / 4; ++j) {
      const auto any = static_cast<std::int32_t>(random());
      c[i][j] = !extreme ? any : j % 2 == 0 ? 0x7ffffff0 : -0x7ffffff0;
      found[i][j] = kUntouched;
    }
  }
  tile_configure(shapes(shape));
  tile_load<0>(c, kStride);
  tile_load<1>(a, kStride);
  tile_load<2>(b, kStride);
  tile_dot_bytes<0, 1, 2>();
  tile_store<0>(found, kStride);
  tile_release();
  bool wrapped = false;
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < kStride / 4; ++n) {
      if (m >= shape.rows || n >= shape.columns) {
        CHECK(found[m][n] == kUntouched);
        continue;
      }
      std::int64_t sum = c[m][n];
      for (int k = 0; k < shape.words; ++k) {
        for (int i = 0; i < 4; ++i) sum += int{a[m][4 * k + i]} * int{b[k][4 * n + i]};
      }
      CHECK(static_cast<std::uint32_t>(found[m][n]) == static_cast<std::uint32_t>(sum));
      wrapped = wrapped || sum != found[m][n];
    }
  }
  CHECK(wrapped || !extreme);
  return true;
}

// tilezero and new shapes clear tiles.
bool check_zero() {
  alignas(64) float c[16][16];
  alignas(64) std::uint16_t ones[16][32];
  for (auto& row : ones) {
    for (auto& x : row) x = 0x3f80;
  }
  for (auto& row : c) {
    for (auto& x : row) x = 7.0f;
  }
  tile_configure(shapes({16, 16, 16}));
  tile_load<0>(c, 64);
  tile_zero<0>();
  tile_load<1>(ones, 64);
  tile_load<2>(ones, 64);
  tile_dot<0, 1, 2>();
  tile_store<0>(c, 64);
  for (auto& row : c) {
    for (float x : row) CHECK(x == 32.0f);
  }
  tile_configure(shapes({16, 16, 16}));  // clears all tiles
  tile_store<0>(c, 64);
  for (auto& row : c) {
    for (float x : row) CHECK(x == 0.0f);
  }
  tile_release();
  return true;
}

#if defined(KOSINE_AMX_EMULATED)
bool permitted() { return true; }
bool nothing_to_save() { return true; }
#else
bool permitted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
bool nothing_to_save() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));  // state that is in use
  return (low & (3u << 17)) == 0;
}
#endif

int commit(bool of_bytes, const std::string& fault) {
  alignas(64) static char bytes[1024];
  TileConfig config = shapes({16, 16, 16});
  if (fault == "no-shapes") {
    tile_load<0>(bytes, 64);
  } else if (fault == "released") {
    tile_configure(config);
    tile_release();
    tile_zero<0>();
  } else if (fault == "no-rows") {
    tile_configure(config);
    tile_load<5>(bytes, 64);
  } else if (fault == "no-fit") {
    config.rows[2] = 15;
    tile_configure(config);
    if (of_bytes) {
      tile_dot_bytes<0, 1, 2>();
    } else {
      tile_dot<0, 1, 2>();
    }
  } else if (fault == "too-many-rows") {
    config.rows[0] = 17;
    tile_configure(config);
  } else if (fault == "rows-without-bytes") {
    config.row_bytes[0] = 0;
    tile_configure(config);
  } else {
    return 3;
  }
  return 0;
}

bool check(bool of_bytes) {
  std::mt19937 random(1);
  for (int round = 0; round < 20; ++round) {
    for (Shape shape : {Shape{16, 16, 16}, {1, 16, 16}, {7, 16, 16}, {15, 3, 5}, {16, 1, 1}}) {
      if (!of_bytes && !check_dot(shape, random)) return false;
      if (of_bytes && !check_dot_bytes(shape, round % 2 != 0, random)) return false;
    }
  }
  if (!of_bytes && !check_zero()) return false;
  CHECK(nothing_to_save());
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  if (!permitted()) {
    std::printf("the system gives this process no tiles\n");
    return 2;
  }
  if (count < 2) return 3;
  const bool of_bytes = std::string(arguments[1]) == "int8";
  if (count > 2) return commit(of_bytes, arguments[2]);
  if (!check(of_bytes)) return 1;
  std::printf("right\n");
  return 0;
}
