// The product of rows of whole numbers with packed panels of bytes (pack_int8.h), tile by tile of
// vectors.
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
constexpr std::size_t kProductRows = Int8::kRows / Dot::kPlanes;

// Rows that are finished together: the more, the less one's GELU waits for itself; as many as leave
// each of their vectors a register or two.
constexpr int kGroupRows = Vec::kLanes / 4;

// The integers of a tile's slice, and what they are added to.
struct SliceSums {
  const std::int32_t* integers;  // (R, planes, kPanel)
  float* totals;
  const char* behind;  // the numbers of the first row
  std::size_t lda;     // bytes
  const float* column_sums;
};

// Where a tile's rows go.
struct Place {
  const float* column_scales;
  const float* biases;
  void* out;
  std::size_t at;
  std::size_t ldo;
};

// The first slice and the last are cases of their own, rather than tests for each vector.
template <kosine::Epilogue kEpilogue, int R, bool kFirst, bool kLast>
[[gnu::always_inline]] inline void add_rows(const SliceSums& slice, const Place& place,
                                            std::size_t row) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const Vec sums[2] = {Vec::load(slice.column_sums),
                       Vec::load(slice.column_sums + kLanes)};
  Vec y[2 * R];
#pragma GCC unroll 4
  for (std::size_t r = 0; r < R; ++r) {
    const SliceFactors factors(slice.behind + (row + r) * slice.lda);
#pragma GCC unroll 2
    for (std::size_t c = 0; c < 2; ++c) {
      const std::size_t at = (row + r) * kPanel + c * kLanes;
      const std::int32_t* const integers =
          slice.integers + (row + r) * Dot::kPlanes * kPanel + c * kLanes;
      const Vec part = factors.part(integers, sums[c]);
      const Vec total = kFirst ? part * factors.scale
                               : fma(part, factors.scale, Vec::load(slice.totals + at));
      if constexpr (kLast) {
        y[2 * r + c] = fma(total, Vec::load(place.column_scales + c * kLanes),
                           Vec::load(place.biases + c * kLanes));
      } else {
        total.store(slice.totals + at);
      }
    }
  }
  if constexpr (kLast) {
    finish<kEpilogue>(y, place.out, [&](std::size_t i) {
      return place.at + (row + i / 2) * place.ldo + i % 2 * kLanes;
    });
  }
}

template <kosine::Epilogue kEpilogue, int R, bool kFirst, bool kLast>
[[gnu::always_inline]] inline void add_slice(const SliceSums& slice, const Place& place) {
  std::size_t row = 0;
#pragma GCC unroll 1
  for (; row + kGroupRows <= R; row += kGroupRows) {
    add_rows<kEpilogue, kGroupRows, kFirst, kLast>(slice, place, row);
  }
  if constexpr (R % kGroupRows != 0) {
    add_rows<kEpilogue, R % kGroupRows, kFirst, kLast>(slice, place, row);
  }
}

template <kosine::Epilogue kEpilogue, int R>
void gemm_tile(const kosine::GemmArgs& args, const Shape& shape, const char* weight,
               std::size_t row, std::size_t panel, Ahead ahead) {
  constexpr std::size_t kElement = sizeof(Dot::Activation);
  const Slices slices = shape.slices;
  const std::size_t lda = args.lda * kElement;
  const char* a = static_cast<const char*>(args.a) + row * lda;
  const Place place{shape.column_scales(weight), args.bias + panel * kPanel, args.out,
                    row * args.ldo + panel * kPanel, args.ldo};
  alignas(kLine) std::int32_t integers[R * Dot::kPlanes * kPanel];
  alignas(kLine) float totals[R * kPanel];
  SliceSums slice{integers, totals, nullptr, lda, shape.column_sums(weight, 0)};
  if constexpr (kEpilogue == kosine::Epilogue::kAdd || kEpilogue == kosine::Epilogue::kGate) {
    fetch_output<kEpilogue, R>(args, row, panel * kPanel);  // what is only written is not awaited
  }
  // Of the next panel: its scales come with its words.
  __builtin_prefetch(place.biases + kPanel);
  __builtin_prefetch(place.biases + kPanel + Vec::kLanes);
  for (std::size_t s = 0; s < slices.count; ++s) {
    const std::size_t width = slices.width_of(s);
    Int8::multiply<R * Dot::kPlanes>(integers, a, lda / Dot::kPlanes, weight,
                                     width / Int8::kStep, ahead);
    a += width * kElement;
    weight += width * kPanel;
    ahead.at += width / Int8::kStep * ahead.advance;
    slice.behind = a;
    const bool last = s + 1 == slices.count;
    if (s == 0) {
      last ? add_slice<kEpilogue, R, true, true>(slice, place)
           : add_slice<kEpilogue, R, true, false>(slice, place);
    } else {
      last ? add_slice<kEpilogue, R, false, true>(slice, place)
           : add_slice<kEpilogue, R, false, false>(slice, place);
    }
    slice.column_sums += kPanel;
    a += kTailBytes;
  }
}

}  // namespace

#include "panels.h"

namespace {

void gemm(const kosine::GemmArgs& args) { multiply_panels(args, Shape(args.depth)); }

}  // namespace
