// Packing a weight into panels, and the product of a matrix with packed panels.
//
// Layout of a packed weight W (depth, columns), for panels of 32 columns and words of kStep:
//
//     panel 0: columns 0..31              panel 1: columns 32..63     ...
//     +-------------------------------+
//     | word 0: W[0..kStep, 0..31]    |   a word row is 32 words side by side, so that one
//     | word 1: W[kStep.., 0..31]     |   vector load gives 16 columns; bfloat16 words hold
//     | ...                           |   W[2k, n], W[2k + 1, n]
//     +-------------------------------+
//
// The whole weight is read once, front to back, for each batch of rows: panel by panel, each
// multiplied with all row tiles while it is in the L2 cache, and while the next panel is on its
// way there.
#pragma once

#include "epilogue.h"
#include "kernels.h"
#include "tile.h"

namespace {

constexpr std::size_t kPanel = 2 * Vec::kLanes;
constexpr std::size_t kPanelStride = 2 * Dot::kVectorBytes;  // of a word of the depth
constexpr std::size_t kDepthStep = Dot::kStep;
// Enough rows to hide fetching the weights behind the arithmetic, few enough that activations
// stay in the L2 cache.
constexpr std::size_t kChunkRows = 126;
constexpr std::size_t kAloneRows = 64;
constexpr std::size_t kProductRows = kTileRows;

// As many columns for each slice of a feed-forward, 1024 at most.
std::size_t slice_columns(std::size_t inner) {
  const std::size_t slices = (inner + 1023) / 1024;
  const std::size_t panels = (inner + kPanel - 1) / kPanel;
  return (panels + slices - 1) / slices * kPanel;
}

std::size_t row_elements(std::size_t width) {
  return (width + kDepthStep - 1) / kDepthStep * kDepthStep;
}

struct Shape {
  explicit Shape(std::size_t depth)
      : steps(depth / Dot::kStep), panel_bytes(steps * kPanelStride) {}
  std::size_t steps;
  std::size_t panel_bytes;
};

std::size_t panel_bytes(std::size_t padded_depth) { return Shape(padded_depth).panel_bytes; }

void pack(const kosine::PackArgs& args) {
  const auto* weight = static_cast<const Dot::Weight*>(args.weight);
  auto* panel = static_cast<char*>(args.packed);
  for (std::size_t n = 0; n < args.columns; n += kPanel, panel += panel_bytes(args.padded_depth)) {
    auto* to = reinterpret_cast<Dot::Packed*>(panel);
    for (std::size_t k = 0; k < args.padded_depth; k += Dot::kStep) {
      for (std::size_t j = 0; j < kPanel; ++j) {
        for (std::size_t i = 0; i < Dot::kStep; ++i) {
          const bool inside = k + i < args.depth && n + j < args.columns;
          *to++ = inside ? Dot::round(weight[(k + i) * args.ldw + n + j]) : Dot::Packed{0};
        }
      }
    }
  }
}

template <kosine::Epilogue kEpilogue, int R>
void gemm_tile(const kosine::GemmArgs& args, const Shape& shape, const char* weight,
               std::size_t row, std::size_t panel, Ahead ahead) {
  constexpr std::size_t kElement = sizeof(Dot::Activation);
  const char* a = static_cast<const char*>(args.a) + row * args.lda * kElement;
  Vec acc[R][2];
  fetch_output<kEpilogue, R>(args, row, panel * kPanel);
  multiply<Dot, R, 2, true>(acc, a, args.lda * kElement, {weight, kPanelStride}, shape.steps, ahead);
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const std::size_t column = panel * kPanel + c * Vec::kLanes;
    const Vec bias = Vec::load(args.bias + column);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const std::size_t at = (row + r) * args.ldo + column;
      Vec y[] = {acc[r][c] + bias};
      finish<kEpilogue>(y, args.out, [&](std::size_t) { return at; });
    }
  }
}

}  // namespace

#include "panels.h"

namespace {

void gemm(const kosine::GemmArgs& args) { multiply_panels(args, Shape(args.depth)); }

}  // namespace
