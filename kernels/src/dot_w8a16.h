// Products of floats, or of bfloat16 pairs, with weights of signed bytes that are widened on their
// way from the cache: half the bytes of bfloat16, a quarter of float32. A byte is exact in both.
//
// `Wide` is the product of the widened operands.
#pragma once

#include "kernels.h"

namespace {

template <class Wide>
struct BytesDot : Wide {
  static constexpr kosine::Dtype kDtype = kosine::Dtype::kW8A16;
  static constexpr bool kStaged = true;
  static constexpr bool kScaled = true;  // a column's sum is multiplied by its scale
  static constexpr std::size_t kVectorBytes = Vec::kLanes * Wide::kStep;
  using Operand = Wide;
  using Weight = signed char;
  using Packed = signed char;

  static typename Wide::Words load(const char* p) { return widened(p, typename Wide::Words{}); }
  static Packed round(Weight x) { return x; }

  // Floats are rounded one by one here: see quantize_row for the arguments.
  template <class Value>
  static void quantize(Value value, std::size_t width, const float* smooth,
                       typename Wide::Activation* out) {
    for (std::size_t i = 0; i < width; i += Vec::kLanes) {
      const Vec x = value(i);
      Wide::store(smooth == nullptr ? x : x * Vec::load(smooth + i), out + i);
    }
  }

 private:
  static Vec widened(const char* p, Vec) {
    const auto* bytes = reinterpret_cast<const __m128i*>(p);
#if defined(__AVX512F__)
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(bytes)))};
#else
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes)))};
#endif
  }
#if defined(__AVX512BF16__)
  // Whole numbers of seven bits: the upper half of the float is all of it.
  static __m512bh widened(const char* p, __m512bh) {
    const __m512i pairs =
        _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i even = _mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16);
    const __m512i odd = _mm512_srai_epi32(pairs, 16);
    const __m512i low = _mm512_srli_epi32((__m512i)_mm512_cvtepi32_ps(even), 16);
    return (__m512bh)_mm512_or_si512(low, (__m512i)_mm512_cvtepi32_ps(odd));
  }
#endif
};

}  // namespace
