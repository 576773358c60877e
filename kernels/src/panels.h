// A product panel by panel, row tile by row tile: for the unit that has its `Shape` and `gemm_tile`.
#pragma once

#include <utility>

#include "kernels.h"
#include "tile.h"

namespace {

using Tile = void (*)(const kosine::GemmArgs&, const Shape&, const char*, std::size_t, std::size_t,
                      Ahead);

// By height, from one row on.
template <kosine::Epilogue kEpilogue, int... kIndices>
const Tile* tiles_of(std::integer_sequence<int, kIndices...>) {
  static constexpr Tile kTiles[] = {gemm_tile<kEpilogue, kIndices + 1>...};
  return kTiles;
}

inline const Tile* tiles_of(kosine::Epilogue epilogue) {
  constexpr std::make_integer_sequence<int, kProductRows> kHeights;
  switch (epilogue) {
    case kosine::Epilogue::kStore: return tiles_of<kosine::Epilogue::kStore>(kHeights);
    case kosine::Epilogue::kHeads: return tiles_of<kHeadsEpilogue>(kHeights);
    case kosine::Epilogue::kAdd: return tiles_of<kosine::Epilogue::kAdd>(kHeights);
    case kosine::Epilogue::kGelu: return tiles_of<kosine::Epilogue::kGelu>(kHeights);
    case kosine::Epilogue::kGeluTanh: return tiles_of<kosine::Epilogue::kGeluTanh>(kHeights);
    case kosine::Epilogue::kSilu: return tiles_of<kosine::Epilogue::kSilu>(kHeights);
    case kosine::Epilogue::kGate: return tiles_of<kosine::Epilogue::kGate>(kHeights);
  }
  return nullptr;
}

inline void multiply_panels(const kosine::GemmArgs& args, const Shape& shape) {
  const Tile* const tiles = tiles_of(args.epilogue);
  const std::size_t steps = shape.panel_bytes / kPanelStride;  // of a tile, in which it fetches
  if (args.rows == 0) return;
  const std::size_t count = (args.rows + kProductRows - 1) / kProductRows;
  // Heights as even as they can be: 15 rows are 8 + 7, never 14 + 1.
  const std::size_t height = args.rows / count;
  const std::size_t taller = args.rows % count;
  const char* weight = static_cast<const char*>(args.weight);
  for (std::size_t panel = 0; panel < args.panels; ++panel) {
    // The tiles of this panel share the work of fetching the next one (a prefetch past the last
    // panel is harmless: it never faults).
    const char* const next = weight + shape.panel_bytes;
    const std::size_t share = kPanelStride / (count < 2 ? 1 : count);
    std::size_t row = 0;
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t rows = height + (t < taller ? 1 : 0);
      tiles[rows - 1](args, shape, weight, row, panel, {next + t * steps * share, share});
      row += rows;
    }
    weight = next;
  }
}

}  // namespace
