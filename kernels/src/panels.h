// A product panel by panel, row tile by row tile: for the unit that has its `Shape` and `kTiles`.
#pragma once

#include "kernels.h"
#include "tile.h"

namespace {

template <class Operand>
const Tile* tiles_of(kosine::Epilogue epilogue) {
  static_assert(sizeof kTiles<Operand, kosine::Epilogue::kStore> == kProductRows * sizeof(Tile));
  switch (epilogue) {
    case kosine::Epilogue::kStore: return kTiles<Operand, kosine::Epilogue::kStore>;
    case kosine::Epilogue::kAdd: return kTiles<Operand, kosine::Epilogue::kAdd>;
    case kosine::Epilogue::kGelu: return kTiles<Operand, kosine::Epilogue::kGelu>;
    case kosine::Epilogue::kGeluTanh: return kTiles<Operand, kosine::Epilogue::kGeluTanh>;
    case kosine::Epilogue::kSilu: return kTiles<Operand, kosine::Epilogue::kSilu>;
    case kosine::Epilogue::kGate: return kTiles<Operand, kosine::Epilogue::kGate>;
  }
  return nullptr;
}

// `unpacked` gives, for a packed panel, what the tiles of `Operand` read of it.
template <class Operand, class Unpacked>
void multiply_panels(const kosine::GemmArgs& args, const Shape& shape, Unpacked unpacked) {
  const Tile* const tiles = tiles_of<Operand>(args.epilogue);
  const std::size_t steps = shape.panel_bytes / kPanelStride;  // of a tile, in which it fetches
  if (args.rows == 0) return;
  const std::size_t count = (args.rows + kProductRows - 1) / kProductRows;
  // Heights as even as they can be: 15 rows are 8 + 7, never 14 + 1.
  const std::size_t height = args.rows / count;
  const std::size_t taller = args.rows % count;
  const char* weight = static_cast<const char*>(args.weight);
  for (std::size_t panel = 0; panel < args.panels; ++panel) {
    const char* const words = unpacked(weight);
    // The tiles of this panel share the work of fetching the next one (a prefetch past the last
    // panel is harmless: it never faults).
    weight += shape.panel_bytes;
    const std::size_t share = kPanelStride / (count < 2 ? 1 : count);
    std::size_t row = 0;
    for (std::size_t t = 0; t < count; ++t) {
      const std::size_t rows = height + (t < taller ? 1 : 0);
      tiles[rows - 1](args, shape, words, row, panel, {weight + t * steps * share, share});
      row += rows;
    }
  }
}

}  // namespace
