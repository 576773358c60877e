// How a product is cut on AMX: rows into tiles and blocks, the depth into parts, and what its steps
// fetch ahead.
#pragma once

#include "amx_tile.h"
#include "tile.h"

namespace {

// Blocks of 32 rows take a part of the depth one after another, so that this part of the panel
// (16 KiB) and their results (16 KiB) stay in the L1 cache while the rows pass through it from
// the L2 cache.
constexpr std::size_t kGroupBlocks = 4;
constexpr std::size_t kPartSteps = 8;  // at most, where there are several parts

constexpr std::size_t kStepBytes = 2 * kTileBytes;  // of a panel
constexpr std::size_t kResultStride = Dot::kPlanes * kPanel * sizeof(float);
constexpr std::size_t kTile = kTileHeight * kPanel;  // numbers of one row tile of a panel
constexpr std::size_t kBlock = 2 * kTile;
// Two tiles of rows make a block, or the two planes of one.
constexpr std::size_t kBlockTiles = 2 / Dot::kPlanes;
constexpr std::size_t kBlockRows = kBlockTiles * kTileHeight;

// The rows of a product, tile by tile.
struct RowTiles {
  std::size_t rows;

  std::size_t height() const { return rows < kTileHeight ? rows : kTileHeight; }
  std::size_t count() const { return (rows + kTileHeight - 1) / kTileHeight; }
  std::size_t begin(std::size_t i) const {
    const std::size_t last = rows - height();
    return i * kTileHeight < last ? i * kTileHeight : last;
  }
  // How many of a tile's first rows belong to the tile before.
  std::size_t shared(std::size_t i) const { return i * kTileHeight - begin(i); }
};

// c0 .. c3 and a0 in tiles of the rows' height. So is a1 where it is a plane; else it shares its
// shape with the weight's tiles, since there are two tiles of rows only where their height is 16.
inline TileConfig tile_shapes(std::size_t height) {
  constexpr int kOfRows = Dot::kPlanes == 2 ? 6 : 5;
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = kTileRowBytes;
    config.rows[t] = static_cast<std::uint8_t>(t < kOfRows ? height : kTileHeight);
  }
  return config;
}

// A part of the depth: steps from .. to of a panel.
struct Part {
  std::size_t index;
  std::size_t from;
  std::size_t to;
  std::size_t at;  // bytes from the start of a row of activations
  bool last;
};

// Rows of a panel of the result for which a part of the depth has been summed up.
struct Piece {
  Part part;
  std::size_t panel;
  std::size_t row;
  std::size_t count;
};

// Calls for cache lines of the weight that are needed later. Past its end that is harmless: a
// prefetch never faults.
struct Fetcher {
  const char* at;
  std::size_t lines;  // in each step, at least 1

  [[gnu::always_inline]] void step() {
    const char* const end = at + lines * kLine;
    do {
      _mm_prefetch(at, _MM_HINT_T1);
      at += kLine;
    } while (at != end);
  }
};

}  // namespace
