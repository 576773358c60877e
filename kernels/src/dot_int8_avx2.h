// Products of unsigned and signed bytes in AVX2, summed in int32: a word is two neighbours of the
// depth axis, widened to 16 bits, since vpmaddubsw would saturate. The integers are those of VNNI.
#pragma once

#include "kernels.h"
#include "quantize.h"
#include "tile.h"

namespace {

struct Int8 {
  using Activation = std::uint16_t;  // a byte, or a word with its sign
  static constexpr std::size_t kStep = 2;
  static constexpr std::size_t kRows = 5;
  static constexpr std::size_t kWordPlanes = 1;

  static Vec floats(const std::int32_t* sums) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)))};
  }

  static Vec word_floats(const std::int32_t* sums, const std::int32_t*, Vec) {
    return floats(sums);
  }

  // round(x) + zero, which lies in 0..256, as bytes (widened).
  static void store_bytes(Vec x, int zero, Activation* p) {
    const __m256i whole = _mm256_add_epi32(_mm256_cvtps_epi32(x.v), _mm256_set1_epi32(zero));
    const __m256i bytes =
        _mm256_max_epi32(_mm256_setzero_si256(), _mm256_min_epi32(whole, _mm256_set1_epi32(255)));
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
  }

  // round(x), from -16383 to 16383.
  static void store_words(Vec x, Activation* p, std::size_t) {
    const __m256i whole = _mm256_cvtps_epi32(x.v);
    const __m128i words =
        _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
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
      const __m256i b[2] = {widened(weight), widened(weight + 16)};
      weight += 32;
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        std::int32_t word;
        __builtin_memcpy(&word, a + static_cast<std::size_t>(r) * lda + k * sizeof word,
                         sizeof word);
        const __m256i pair = _mm256_set1_epi32(word);
#pragma GCC unroll 2
        for (int c = 0; c < 2; ++c) {
          acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(pair, b[c]));
        }
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
  static __m256i widened(const char* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
};

}  // namespace
