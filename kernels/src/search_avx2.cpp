// AVX2: search.
#include "vec_avx2.h"

namespace {

// A bit for each lane where a is not at most b.
inline std::uint32_t beyond(Vec a, Vec b) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NLE_UQ)));
}

inline Vec from_bytes(const std::uint8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))};
}
inline Vec from_bytes(const std::int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}

}  // namespace

#include "search_rows.h"

constinit const kosine::SearchKernels kosine::kAvx2Search = search_table(kosine::Isa::kAvx2);
