// The product of quantized rows with packed panels of bytes (pack_int8.h), tile by tile of vectors.
#pragma once

#include "epilogue.h"
#include "kernels.h"
#include "pack_int8.h"
#include "quantize.h"
#include "tile.h"

namespace {

constexpr std::size_t kPanelStride = kPanel * Int8::kStep;
constexpr std::size_t kChunkRows = 112;
constexpr std::size_t kAloneRows = 64;
constexpr std::size_t kProductRows = Int8::kRows;
constexpr std::size_t kGemmScratch = 0;

template <kosine::Epilogue kEpilogue, int R>
void gemm_tile(const kosine::GemmArgs& args, const Shape& shape, const char* weight,
               std::size_t row, std::size_t panel, Ahead ahead) {
  constexpr std::size_t kElement = sizeof(Dot::Activation);
  constexpr std::size_t kLanes = Vec::kLanes;
  const Slices& slices = shape.slices;
  const std::size_t lda = args.lda * kElement;
  const char* a = static_cast<const char*>(args.a) + row * lda;
  const float* column_sums = shape.column_sums(weight, 0);
  const float* column_scales = shape.column_scales(weight);
  const Vec scales[2] = {Vec::load(column_scales), Vec::load(column_scales + kLanes)};
  const float* biases = args.bias + panel * kPanel;
  const Vec bias[2] = {Vec::load(biases), Vec::load(biases + kLanes)};
  alignas(kLine) std::int32_t integers[R * kPanel];
  alignas(kLine) float totals[R * kPanel];
  fetch_output<kEpilogue, R>(args, row, panel * kPanel);
  for (std::size_t s = 0; s < slices.count; ++s) {
    const std::size_t width = slices.width_of(s);
    Int8::multiply<R>(integers, a, lda, weight, width / Int8::kStep, ahead);
    a += width * kElement;
    weight += width * kPanel;
    ahead.at += width / Int8::kStep * ahead.advance;
    const bool last = s + 1 == slices.count;
    const Vec sums[2] = {Vec::load(column_sums), Vec::load(column_sums + kLanes)};
    column_sums += kPanel;
#pragma GCC unroll 16
    for (std::size_t r = 0; r < R; ++r) {
      const SliceFactors factors(a + r * lda);
#pragma GCC unroll 2
      for (std::size_t c = 0; c < 2; ++c) {
        const std::size_t at = r * kPanel + c * kLanes;
        const Vec whole = Int8::floats(integers + at);
        const Vec total = s == 0 ? factors.first(whole, sums[c])
                                 : factors.next(whole, sums[c], Vec::load(totals + at));
        if (last) {
          finish<kEpilogue>(fma(total, scales[c], bias[c]), args.out,
                            (row + r) * args.ldo + panel * kPanel + c * kLanes);
        } else {
          total.store(totals + at);
        }
      }
    }
    a += kTailBytes;
  }
}

using Tile = void (*)(const kosine::GemmArgs&, const Shape&, const char*, std::size_t, std::size_t,
                      Ahead);

template <class, kosine::Epilogue kEpilogue>
constexpr Tile kTiles[] = {
    gemm_tile<kEpilogue, 1>,  gemm_tile<kEpilogue, 2>,  gemm_tile<kEpilogue, 3>,
    gemm_tile<kEpilogue, 4>,  gemm_tile<kEpilogue, 5>,
#if defined(__AVXVNNI__) || defined(__AVX512F__)
    gemm_tile<kEpilogue, 6>,
#endif
#if defined(__AVX512F__)
    gemm_tile<kEpilogue, 7>,  gemm_tile<kEpilogue, 8>,  gemm_tile<kEpilogue, 9>,
    gemm_tile<kEpilogue, 10>, gemm_tile<kEpilogue, 11>, gemm_tile<kEpilogue, 12>,
    gemm_tile<kEpilogue, 13>, gemm_tile<kEpilogue, 14>,
#endif
};

}  // namespace

#include "panels.h"

namespace {

void gemm(const kosine::GemmArgs& args) {
  multiply_panels<Int8>(args, Shape(args.depth), [](const char* panel) { return panel; });
}

}  // namespace
