// Packing a weight into panels, and the product of a matrix with packed panels.
//
// Layout of a packed weight W (depth, columns), for panels of 32 columns and words of kStep:
//
//     panel 0: columns 0..31              panel 1: columns 32..63     ...
//     +-------------------------------+
//     | word 0: W[0..kStep, 0..31]    |   a word row is 32 words side by side, so that one
//     | word 1: W[kStep.., 0..31]     |   vector load gives 16 columns; bfloat16 words hold
//     | ...                           |   W[2k, n], W[2k + 1, n]
//     +-------------------------------+   weights of bytes: their columns' scales follow
//
// Weights of bytes are widened in the registers of a tile where there are one or two tiles of rows.
// With more, the panel is widened once for all, into a panel of the wide words: widening takes the
// units that multiply. The arithmetic is the same.
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
// For a panel of 1024 floats of depth; what is deeper is widened in the tiles' registers.
constexpr std::size_t kGemmScratch = Dot::kScaled ? 129 * 1024 : 0;

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
      : steps(depth / Dot::kStep),
        panel_bytes(steps * kPanelStride + (Dot::kScaled ? kPanel * sizeof(float) : 0)) {}
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
    if constexpr (Dot::kScaled) {
      auto* scales = reinterpret_cast<float*>(to);
      for (std::size_t j = 0; j < kPanel; ++j) {
        scales[j] = n + j < args.columns ? args.scale[n + j] : 0.0f;
      }
    }
  }
}

// `Operand` says what the words of `weight`, a panel, are.
template <class Operand, kosine::Epilogue kEpilogue, int R>
void gemm_tile(const kosine::GemmArgs& args, const Shape& shape, const char* weight,
               std::size_t row, std::size_t panel, Ahead ahead) {
  constexpr std::size_t kElement = sizeof(Dot::Activation);
  constexpr std::size_t kStride = 2 * Operand::kVectorBytes;
  const char* a = static_cast<const char*>(args.a) + row * args.lda * kElement;
  Vec acc[R][2];
  fetch_output<kEpilogue, R>(args, row, panel * kPanel);
  multiply<Operand, R, 2, true>(acc, a, args.lda * kElement, {weight, kStride}, shape.steps, ahead);
  [[maybe_unused]] Vec scales[2];
  if constexpr (Dot::kScaled) {
    const auto* from = reinterpret_cast<const float*>(weight + shape.steps * kStride);
    scales[0] = Vec::load(from);
    scales[1] = Vec::load(from + Vec::kLanes);
  }
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const std::size_t column = panel * kPanel + c * Vec::kLanes;
    const Vec bias = Vec::load(args.bias + column);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const std::size_t at = (row + r) * args.ldo + column;
      Vec y[] = {Dot::kScaled ? fma(acc[r][c], scales[c], bias) : acc[r][c] + bias};
      finish<kEpilogue>(y, args.out, [&](std::size_t) { return at; });
    }
  }
}

using Tile = void (*)(const kosine::GemmArgs&, const Shape&, const char*, std::size_t, std::size_t,
                      Ahead);

template <class Operand, kosine::Epilogue kEpilogue>
constexpr Tile kTiles[] = {
    gemm_tile<Operand, kEpilogue, 1>,  gemm_tile<Operand, kEpilogue, 2>,
    gemm_tile<Operand, kEpilogue, 3>,  gemm_tile<Operand, kEpilogue, 4>,
    gemm_tile<Operand, kEpilogue, 5>,  gemm_tile<Operand, kEpilogue, 6>,
#if defined(__AVX512F__)
    gemm_tile<Operand, kEpilogue, 7>,  gemm_tile<Operand, kEpilogue, 8>,
    gemm_tile<Operand, kEpilogue, 9>,  gemm_tile<Operand, kEpilogue, 10>,
    gemm_tile<Operand, kEpilogue, 11>, gemm_tile<Operand, kEpilogue, 12>,
    gemm_tile<Operand, kEpilogue, 13>, gemm_tile<Operand, kEpilogue, 14>,
#endif
};

}  // namespace

#include "panels.h"

namespace {

// A packed panel to words of `Operand`, its scales behind them; see the top of this file.
template <class Operand>
const char* widen_panel(const char* packed, const Shape& shape, char* wide) {
  char* to = wide;
  for (std::size_t i = 0; i < 2 * shape.steps; ++i) {
    Operand::put(Dot::load(packed), to);
    packed += Dot::kVectorBytes;
    to += Operand::kVectorBytes;
  }
  __builtin_memcpy(to, packed, kPanel * sizeof(float));
  return wide;
}

template <class Packed>
void multiply_packed(const kosine::GemmArgs& args, const Shape& shape) {
  if constexpr (Packed::kScaled) {
    using Operand = typename Packed::Operand;
    const std::size_t wide = shape.steps * 2 * Operand::kVectorBytes + kPanel * sizeof(float);
    if (args.rows > 2 * kTileRows && args.scratch != nullptr && wide <= kGemmScratch) {
      auto* const room = static_cast<char*>(args.scratch);
      multiply_panels<Operand>(args, shape, [&](const char* panel) {
        return widen_panel<Operand>(panel, shape, room);
      });
      return;
    }
  }
  multiply_panels<Packed>(args, shape, [](const char* panel) { return panel; });
}

void gemm(const kosine::GemmArgs& args) { multiply_packed<Dot>(args, Shape(args.depth)); }

}  // namespace
