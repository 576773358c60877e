// Packing a weight of signed bytes, and what quantized rows (quantize.h) make of its integers.
//
// A panel of 32 columns (16 in AVX2) holds, one after another:
//
//     words of all slices   W[k .. k + kStep, column], columns side by side, as gemm.h has them
//     column sums           float[slices][columns]: of the bytes of a slice
//     column scales         float[columns]
//
// For each slice of the depth int32 sums are exact. In float32 its part is
//
//     part = sum - zero * column_sum
//
// of bytes. Of words it is their sum, rounded once; by planes that is, in int32,
//
//     sum = 256 * sum of the upper bytes + sum of the lower bytes - 16384 * column_sum
//
// and the result is (part_0 * scale_0 + part_1 * scale_1 + ...) * column_scale + bias, in float32
// with fused multiply-adds, slice after slice: which tile a row falls into changes no bit of it.
#pragma once

#include "kernels.h"
#include "quantize.h"

namespace {

constexpr std::size_t kPanel = 2 * Vec::kLanes;

std::size_t slice_columns(std::size_t inner) { return Slices(inner).width; }

// Of a plane.
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

  const float* column_sums(const char* panel, std::size_t slice) const {
    return reinterpret_cast<const float*>(panel + slices.depth * kPanel) + slice * kPanel;
  }
  const float* column_scales(const char* panel) const { return column_sums(panel, slices.count); }
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

// What stands behind the bytes of a row's slice, and what it makes of the integers of a column.
struct SliceFactors {
  Vec scale;
  Vec zero;  // negative

  explicit SliceFactors(const char* behind) {
    Tail tail;
    __builtin_memcpy(&tail, behind, sizeof tail);
    scale = Vec::all(tail.scale);
    zero = Vec::all(-tail.zero);
  }
  // A vector of columns' part of the sums: of each plane, kPanel apart.
  [[gnu::always_inline]] Vec part(const std::int32_t* integers, Vec column_sums) const {
    return Dot::kInBytes ? fma(zero, column_sums, Int8::floats(integers))
                         : Int8::word_floats(integers, integers + kPanel, column_sums);
  }
};

}  // namespace
