// Products of unsigned and signed bytes by vpdpbusd of 256 bits, as processors without AVX512 have
// it: a word is four neighbours of the depth axis, summed in int32.
#pragma once

#include "kernels.h"
#include "quantize.h"
#include "tile.h"

namespace {

struct Int8 {
  using Activation = std::uint8_t;
  static constexpr std::size_t kStep = 4;
  static constexpr std::size_t kRows = 6;
  static constexpr std::size_t kWordPlanes = 2;

  static Vec floats(const std::int32_t* sums) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)))};
  }

  // Of words, from the sums of their upper and lower bytes.
  static Vec word_floats(const std::int32_t* upper, const std::int32_t* lower, Vec column_sums) {
    const __m256i bytes = _mm256_add_epi32(
        _mm256_slli_epi32(load(reinterpret_cast<const char*>(upper)), 8),
        load(reinterpret_cast<const char*>(lower)));
    const __m256i zeros = _mm256_slli_epi32(_mm256_cvtps_epi32(column_sums.v), kWordZeroBits);
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(bytes, zeros))};
  }

  // round(x) + zero, which lies in 0..256, as bytes.
  static void store_bytes(Vec x, int zero, Activation* p) {
    store(_mm256_add_epi32(_mm256_cvtps_epi32(x.v), _mm256_set1_epi32(zero)), p);
  }

  // round(x), from -16383 to 16383, as an upper and a lower byte.
  static void store_words(Vec x, Activation* p, std::size_t plane) {
    const __m256i word =
        _mm256_add_epi32(_mm256_cvtps_epi32(x.v), _mm256_set1_epi32(1 << kWordZeroBits));
    store(_mm256_srli_epi32(word, 8), p);
    store(_mm256_and_si256(word, _mm256_set1_epi32(0xff)), p + plane);
  }

  // sums (R, 16) = rows of a times a panel, over `steps` words, a multiple of four. A step's share
  // of the next panel is one line at most.
  template <int R>
  static void multiply(std::int32_t* sums, const char* a, std::size_t lda, const char* weight,
                       std::size_t steps, Ahead ahead) {
    __m256i acc[R][2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (std::size_t k = 0; k < steps; ++k) {
      _mm_prefetch(ahead.at, _MM_HINT_T1);
      ahead.at += ahead.advance;
      const __m256i b[2] = {load(weight), load(weight + 32)};
      weight += 64;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        std::int32_t word;
        __builtin_memcpy(&word, a + static_cast<std::size_t>(r) * lda + k * sizeof word,
                         sizeof word);
        const __m256i bytes = _mm256_set1_epi32(word);
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) add_products(acc[r][c], bytes, b[c]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + (2 * r + c) * 8), acc[r][c]);
      }
    }
  }

 private:
  static void store(__m256i whole, Activation* p) {
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  static __m256i load(const char* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  // Written out: GCC 12 copies the accumulators of its intrinsic.
  [[gnu::always_inline]] static void add_products(__m256i& sums, __m256i bytes, __m256i weight) {
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(bytes), "x"(weight));
  }
};

}  // namespace
