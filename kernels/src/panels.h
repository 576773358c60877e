// A product panel by panel, row tile by row tile: for the unit that has its `Shape` and `kTiles`.
#pragma once

#include "kernels.h"
#include "tile.h"

namespace {

const Tile* tiles_of(kosine::Epilogue epilogue) {
  static_assert(sizeof kTiles<kosine::Epilogue::kStore> == kProductRows * sizeof(Tile));
  switch (epilogue) {
    case kosine::Epilogue::kStore: return kTiles<kosine::Epilogue::kStore>;
    case kosine::Epilogue::kAdd: return kTiles<kosine::Epilogue::kAdd>;
    case kosine::Epilogue::kGelu: return kTiles<kosine::Epilogue::kGelu>;
    case kosine::Epilogue::kGeluTanh: return kTiles<kosine::Epilogue::kGeluTanh>;
    case kosine::Epilogue::kSilu: return kTiles<kosine::Epilogue::kSilu>;
    case kosine::Epilogue::kGate: return kTiles<kosine::Epilogue::kGate>;
  }
  return nullptr;
}

void gemm(const kosine::GemmArgs& args) {
  const Tile* const tiles = tiles_of(args.epilogue);
  const Shape shape(args.depth);
  const std::size_t steps = shape.panel_bytes / kPanelStride;  // of a tile, in which it fetches
  if (args.rows == 0) return;
  const std::size_t count = (args.rows + kProductRows - 1) / kProductRows;
  // Heights as even as they can be: 15 rows are 8 + 7, never 14 + 1.
  const std::size_t height = args.rows / count;
  const std::size_t taller = args.rows % count;
  for (std::size_t panel = 0; panel < args.panels; ++panel) {
    // The tiles of this panel share the work of fetching the next one (a prefetch past the last
    // panel is harmless: it never faults).
    const char* next = static_cast<const char*>(args.weight) + (panel + 1) * shape.panel_bytes;
    const std::size_t share = kPanelStride / (count < 2 ? 1 : count);
    std::size_t row = 0;
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t rows = height + (t < taller ? 1 : 0);
      tiles[rows - 1](args, shape, row, panel, {next + t * steps * share, share});
      row += rows;
    }
  }
}

}  // namespace
