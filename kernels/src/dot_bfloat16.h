// Products of bfloat16 pairs, summed in float32: a word is two neighbours of the depth axis.
//
// vdpbf16ps treats subnormal operands and results as zero and rounds to nearest even whatever
// MXCSR says; its two products are added one after the other. Rounding here is to nearest even.
#pragma once

#include "kernels.h"

namespace {

struct BfloatDot {
  using Activation = std::uint16_t;
  using Words = __m512bh;
  static constexpr kosine::Dtype kDtype = kosine::Dtype::kBfloat16;
  static constexpr bool kQuantized = false;
  static constexpr bool kInBytes = false;
  static constexpr std::size_t kPlanes = 1;
  static constexpr std::size_t kStep = 2;
  static constexpr std::size_t kVectorBytes = sizeof(Vec);
  using Weight = float;
  using Packed = std::uint16_t;

  static Words load(const char* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static Words broadcast(const char* p) {
    std::int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return (__m512bh)_mm512_set1_epi32(word);
  }
  static Vec add_product(Vec acc, Words a, Words b) {
    return {_mm512_dpbf16_ps(acc.v, a, b)};
  }
  static void store(Vec x, Activation* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x.v));
  }
  static Vec widen(const Activation* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static Packed round(Weight x) {
    Activation lanes[8];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lanes),
                     (__m128i)_mm_cvtneps_pbh(_mm_set_ss(x)));
    return lanes[0];
  }
};

}  // namespace
