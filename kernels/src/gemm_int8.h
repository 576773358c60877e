// Packing a weight of signed bytes, and the product of quantized rows (quantize.h) with it.
//
// A panel of 32 columns (16 in AVX2) holds, one after another:
//
//     words of all slices   W[k .. k + kStep, column], columns side by side, as gemm.h has them
//     column sums           float[slices][columns]: of the bytes of a slice
//     column scales         float[columns]
//
// For each slice of the depth, int32 sums of bytes are exact. So is, in float32,
//
//     part = sum - zero * column_sum
//
// and the result is (part_0 * scale_0 + part_1 * scale_1 + ...) * column_scale + bias, in float32
// with fused multiply-adds, slice after slice: which tile a row falls into changes no bit of it.
#pragma once

#include "epilogue.h"
#include "kernels.h"
#include "quantize.h"
#include "tile.h"

namespace {

constexpr std::size_t kPanel = 2 * Vec::kLanes;
constexpr std::size_t kPanelStride = kPanel * Int8::kStep;
constexpr std::size_t kChunkRows = 112;
constexpr std::size_t kAloneRows = 64;
constexpr std::size_t kProductRows = Int8::kRows;
constexpr std::size_t kGemmScratch = 0;

std::size_t slice_columns(std::size_t inner) { return Slices(inner).width; }

std::size_t row_elements(std::size_t width) {
  const Slices slices(width);
  return slices.depth + slices.count * (kTailBytes / sizeof(Dot::Activation));
}

struct Shape {
  explicit Shape(std::size_t depth)
      : slices(depth),
        panel_bytes(slices.depth * kPanel + (slices.count + 1) * kPanel * sizeof(float)) {}
  Slices slices;
  std::size_t panel_bytes;
};

std::size_t panel_bytes(std::size_t padded_depth) { return Shape(padded_depth).panel_bytes; }

void pack(const kosine::PackArgs& args) {
  const auto* weight = static_cast<const signed char*>(args.weight);
  const Shape shape(args.padded_depth);
  const Slices& slices = shape.slices;
  auto* panel = static_cast<char*>(args.packed);
  for (std::size_t n = 0; n < args.columns; n += kPanel, panel += shape.panel_bytes) {
    auto* to = reinterpret_cast<signed char*>(panel);
    auto* sums = reinterpret_cast<float*>(panel + slices.depth * kPanel);
    float* scales = sums + slices.count * kPanel;
    for (std::size_t i = 0; i < slices.count * kPanel; ++i) sums[i] = 0;
    for (std::size_t k = 0; k < slices.depth; k += Int8::kStep) {
      for (std::size_t j = 0; j < kPanel; ++j) {
        for (std::size_t i = 0; i < Int8::kStep; ++i) {
          const bool inside = k + i < args.depth && n + j < args.columns;
          const signed char byte = inside ? weight[(k + i) * args.ldw + n + j] : 0;
          sums[k / slices.width * kPanel + j] += byte;
          *to++ = byte;
        }
      }
    }
    for (std::size_t j = 0; j < kPanel; ++j) {
      scales[j] = n + j < args.columns ? args.scale[n + j] : 0.0f;
    }
  }
}

template <kosine::Epilogue kEpilogue, int R>
void gemm_tile(const kosine::GemmArgs& args, const Shape& shape, const char* weight,
               std::size_t row, std::size_t panel, Ahead ahead) {
  constexpr std::size_t kElement = sizeof(Dot::Activation);
  constexpr std::size_t kLanes = Vec::kLanes;
  const Slices& slices = shape.slices;
  const std::size_t lda = args.lda * kElement;
  const char* a = static_cast<const char*>(args.a) + row * lda;
  const auto* column_sums = reinterpret_cast<const float*>(weight + slices.depth * kPanel);
  const float* column_scales = column_sums + slices.count * kPanel;
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
      Tail tail;
      __builtin_memcpy(&tail, a + r * lda, sizeof tail);
      const Vec scale = Vec::all(tail.scale), zero = Vec::all(-tail.zero);
#pragma GCC unroll 2
      for (std::size_t c = 0; c < 2; ++c) {
        const std::size_t at = r * kPanel + c * kLanes;
        const Vec part = fma(zero, sums[c], Int8::floats(integers + at));
        const Vec total = s == 0 ? part * scale : fma(part, scale, Vec::load(totals + at));
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
