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
constexpr std::size_t kWord = 4;
constexpr std::size_t kPanelStride = kPanel * kWord;
constexpr std::size_t kDepthStep = Dot::kStep;
// Enough rows to hide fetching the weights behind the arithmetic, few enough that activations
// stay in the L2 cache.
constexpr std::size_t kChunkRows = 256;
constexpr std::size_t kAloneRows = 64;

void pack(const float* weight, std::size_t ldw, std::size_t depth, std::size_t padded_depth,
          std::size_t columns, void* packed) {
  auto* to = static_cast<Dot::Activation*>(packed);
  for (std::size_t n = 0; n < columns; n += kPanel) {
    for (std::size_t k = 0; k < padded_depth; k += Dot::kStep) {
      for (std::size_t j = 0; j < kPanel; ++j) {
        for (std::size_t i = 0; i < Dot::kStep; ++i) {
          const bool inside = k + i < depth && n + j < columns;
          *to++ = inside ? Dot::round(weight[(k + i) * ldw + n + j]) : Dot::Activation{0};
        }
      }
    }
  }
}

template <kosine::Epilogue kEpilogue, int R>
void gemm_tile(const kosine::GemmArgs& args, std::size_t row, std::size_t panel, Ahead ahead) {
  constexpr std::size_t kElement = sizeof(Dot::Activation);
  const std::size_t steps = args.depth / Dot::kStep;
  const char* a = static_cast<const char*>(args.a) + row * args.lda * kElement;
  const char* weight = static_cast<const char*>(args.weight) + panel * steps * kPanelStride;
  Vec acc[R][2];
  multiply<Dot, R, 2, true>(acc, a, args.lda * kElement, {weight, kPanelStride}, steps, ahead);
#pragma GCC unroll 2
  for (int c = 0; c < 2; ++c) {
    const std::size_t column = panel * kPanel + c * Vec::kLanes;
    const Vec bias = Vec::load(args.bias + column);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const std::size_t at = (row + r) * args.ldo + column;
      finish<kEpilogue>(acc[r][c] + bias, args.out, at);
    }
  }
}

using Tile = void (*)(const kosine::GemmArgs&, std::size_t, std::size_t, Ahead);

template <kosine::Epilogue kEpilogue>
constexpr Tile kTiles[] = {
    gemm_tile<kEpilogue, 1>,  gemm_tile<kEpilogue, 2>,  gemm_tile<kEpilogue, 3>,
    gemm_tile<kEpilogue, 4>,  gemm_tile<kEpilogue, 5>,  gemm_tile<kEpilogue, 6>,
#if defined(__AVX512F__)
    gemm_tile<kEpilogue, 7>,  gemm_tile<kEpilogue, 8>,  gemm_tile<kEpilogue, 9>,
    gemm_tile<kEpilogue, 10>, gemm_tile<kEpilogue, 11>, gemm_tile<kEpilogue, 12>,
    gemm_tile<kEpilogue, 13>, gemm_tile<kEpilogue, 14>,
#endif
};

const Tile* tiles_of(kosine::Epilogue epilogue) {
  static_assert(sizeof kTiles<kosine::Epilogue::kStore> == kTileRows * sizeof(Tile));
  switch (epilogue) {
    case kosine::Epilogue::kStore: return kTiles<kosine::Epilogue::kStore>;
    case kosine::Epilogue::kAdd: return kTiles<kosine::Epilogue::kAdd>;
    case kosine::Epilogue::kGelu: return kTiles<kosine::Epilogue::kGelu>;
    case kosine::Epilogue::kGate: return kTiles<kosine::Epilogue::kGate>;
  }
  return nullptr;
}

void gemm(const kosine::GemmArgs& args) {
  const Tile* const tiles = tiles_of(args.epilogue);
  const std::size_t steps = args.depth / Dot::kStep;
  const std::size_t count = (args.rows + kTileRows - 1) / kTileRows;
  for (std::size_t panel = 0; panel < args.panels; ++panel) {
    // The tiles of this panel share the work of fetching the next one (a prefetch past the last
    // panel is harmless: it never faults).
    const char* next =
        static_cast<const char*>(args.weight) + (panel + 1) * steps * kPanelStride;
    const std::size_t share = kPanelStride / (count < 2 ? 1 : count);
    for (std::size_t t = 0; t < count; ++t) {
      // Heights as even as they can be: 15 rows are 8 + 7, never 14 + 1.
      const std::size_t begin = args.rows * t / count;
      const std::size_t end = args.rows * (t + 1) / count;
      tiles[end - begin - 1](args, begin, panel, {next + t * steps * share, share});
    }
  }
}

}  // namespace
