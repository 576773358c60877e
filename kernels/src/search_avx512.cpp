// AVX512: search.
#include "vec_avx512.h"

namespace {

// A bit for each lane where a is not at most b.
inline std::uint32_t beyond(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLE_UQ); }

inline Vec from_bytes(const std::uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))};
}
inline Vec from_bytes(const std::int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

}  // namespace

#include "search_rows.h"

constinit const kosine::SearchKernels kosine::kAvx512Search = search_table(kosine::Isa::kAvx512);
