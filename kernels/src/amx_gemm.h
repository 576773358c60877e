// The product of a matrix with packed panels on AMX, for the unit that has its `Parts`, `Room` and
// `Finisher` (amx_sums_bfloat16.h, amx_sums_int8.h).
//
// The tiles of a step, 64 bytes of the depth, where there are more than 16 rows: 4 loads, 4
// products.
//
//                      b0 | b1            A tile of the result takes one product in each step, in
//              a0      c0 | c1            the order of the depth, whatever else is computed with
//              a1      c2 | c3            it.
//
// A last tile of rows without a partner, or the only one, takes two panels: a0 x (b0 .. b3). With
// two tiles of the result alone, each product would wait for the one before. Of words (quantize.h)
// a0 and a1 are the two planes of one tile, so there is always a partner.
//
// All tiles have the same height: 16, or `rows` where those are fewer. Where 16 does not divide
// the rows, the last tile begins early enough to end with them; the rows that it has in common
// with the tile before come out the same, and are not written again.
//
// Epilogues are vector code, and vectors and tiles are different units of the processor: a block
// of the result is finished row by row between the steps of the next block.
#pragma once

#include "amx_blocks.h"
#include "amx_tile.h"
#include "kernels.h"

namespace {

// Enough rows to hide fetching the weights behind the arithmetic, which is several times as fast
// as with vectors; few enough that activations stay in the L2 cache. Weights of bytes are half to
// fetch.
constexpr std::size_t kChunkRows = Dot::kQuantized ? 256 : 512;
constexpr std::size_t kAloneRows = 128;

// How far ahead of a product weights are fetched when each is used once: 8 KiB of a panel.
constexpr std::size_t kAheadSteps = 4;

template <kosine::Epilogue kEpilogue>
class Product {
 public:
  explicit Product(const kosine::GemmArgs& args)
      : args_(args),
        tiles_{args.rows},
        lda_(args.lda * sizeof(Dot::Activation)),
        parts_(args.depth),
        panel_bytes_(parts_.panel_bytes()) {}

  void run() {
    for (std::size_t panel = 0; panel < args_.panels; panel += 2) {
      const bool two = panel + 1 < args_.panels;
      pairs(panel);
      if (two) pairs(panel + 1);
      if constexpr (kBlockTiles == 2) {
        if (tiles_.count() % 2 == 0) continue;
        finish_block();
        if (two) {
          last<2>(panel);
        } else {
          last<1>(panel);
        }
      }
    }
    finish_block();
  }

 private:
  void finish_block() { unfinished_.step(kBlockRows); }

  const char* row(std::size_t i) const { return static_cast<const char*>(args_.a) + i * lda_; }
  const char* weight(std::size_t panel) const {
    return static_cast<const char*>(args_.weight) + panel * panel_bytes_;
  }

  // All pairs of tiles with one panel, while the next panel is on its way.
  void pairs(std::size_t panel) {
    const std::size_t blocks = tiles_.count() / kBlockTiles;
    if (blocks == 0) return;
    const std::size_t share = blocks * parts_.steps;  // steps to fetch the next panel in
    Fetcher next{weight(panel + 1), (panel_bytes_ / kLine + share - 1) / share};
    for (std::size_t group = 0; group < blocks; group += kGroupBlocks) {
      const std::size_t end = group + kGroupBlocks < blocks ? group + kGroupBlocks : blocks;
      const std::size_t parts = parts_.count(end - group == 1);
      for (std::size_t i = 0; i < parts; ++i) {
        const Part part = parts_.part(i, parts);
        for (std::size_t block = group; block < end; ++block) {
          const Place place = room_.block(block - group);
          multiply(place, block, panel, part, next);
          if (Parts::kCarried && !part.last) continue;
          const std::size_t first = block * kBlockTiles, begin = first * kTileHeight;
          const std::size_t count =
              tiles_.begin(first + kBlockTiles - 1) + tiles_.height() - begin;
          unfinished_ = {place.at(tiles_.shared(first) * kPanel), args_, parts_,
                         {part, panel, begin, count}};
        }
      }
    }
  }

  // A part of a block, and all that is left to do for the block before, which may lie in the same
  // place: it is written last. Its rows are those of the result: where two row tiles share some,
  // both write them, and write the same.
  [[gnu::noinline]] void multiply(Place place, std::size_t block, std::size_t panel,
                                  const Part& part, Fetcher& next) {
    constexpr bool kPlane = kBlockTiles == 1;  // what a1 is: they alternate in the sums, row by row
    const std::size_t upper = tiles_.begin(block * kBlockTiles);
    const std::size_t lower = kPlane ? upper : tiles_.begin(block * kBlockTiles + 1);
    auto* const c = place.sums;
    auto* const c2 = c + (kPlane ? 1 : lower - upper) * kPanel;
    if (!Parts::kCarried || part.index == 0) {
      tile_zero<0>();
      tile_zero<1>();
      tile_zero<2>();
      tile_zero<3>();
    } else {
      tile_load<0>(c, kResultStride);
      tile_load<1>(c + Vec::kLanes, kResultStride);
      tile_load<2>(c2, kResultStride);
      tile_load<3>(c2 + Vec::kLanes, kResultStride);
    }
    const std::size_t lda = lda_;
    const char* a0 = row(upper) + part.at;
    const char* a1 = row(lower) + part.at + (kPlane ? lda / 2 : 0);
    const char* b = weight(panel) + part.from * kStepBytes;
    std::size_t steps = part.to - part.from;
    const std::size_t rows = (unfinished_.left() + steps - 1) / steps;
    Finisher<kEpilogue> before = unfinished_;  // copies, to be kept in registers
    Fetcher fetcher = next;
    unfinished_.hand_over();
    do {
      tile_load<6>(b, kWeightStride);
      tile_load<4>(a0, lda);
      add_product<0, 4, 6>();
      tile_load<7>(b + kWeightNext, kWeightStride);
      add_product<1, 4, 7>();
      tile_load<5>(a1, lda);
      add_product<2, 5, 6>();
      add_product<3, 5, 7>();
      a0 += kTileRowBytes;
      a1 += kTileRowBytes;
      b += kStepBytes;
      fetcher.step();
      before.step(rows);
    } while (--steps != 0);
    next = fetcher;
    tile_store<0>(c, kResultStride);
    tile_store<1>(c + Vec::kLanes, kResultStride);
    tile_store<2>(c2, kResultStride);
    tile_store<3>(c2 + Vec::kLanes, kResultStride);
  }

  // The last row tile with kPanels panels side by side.
  template <std::size_t kPanels>
  void last(std::size_t panel) {
    const std::size_t tile = tiles_.count() - 1, shared = tiles_.shared(tile);
    const std::size_t parts = parts_.count(true);
    const Place place = room_.block(0);
    for (std::size_t i = 0; i < parts; ++i) {
      const Part part = parts_.part(i, parts);
      multiply_last<kPanels>(place.sums, tile, panel, part);
      for (std::size_t p = 0; p < kPanels; ++p) {
        const Piece piece{part, panel + p, tile * kTileHeight, tiles_.height() - shared};
        Finisher<kEpilogue>(place.at(p * kTile + shared * kPanel), args_, parts_, piece)
            .step(piece.count);
      }
    }
  }

  template <std::size_t kPanels, class Sum>
  [[gnu::always_inline]] void multiply_last(Sum* c, std::size_t tile, std::size_t panel,
                                            const Part& part) {
    const std::size_t lda = lda_, steps = parts_.steps, panel_bytes = panel_bytes_;
    const char* a = row(tiles_.begin(tile)) + part.at;
    const char* b = weight(panel) + part.from * kStepBytes;
    const bool only = tile == 0;  // else the panels are in the L2 cache by now
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (kPanels == 2) {
      tile_zero<2>();
      tile_zero<3>();
    }
    for (std::size_t step = part.from; step < part.to; ++step) {
      tile_load<4>(a, lda);
      tile_load<5>(b, kWeightStride);
      add_product<0, 4, 5>();
      tile_load<6>(b + kWeightNext, kWeightStride);
      add_product<1, 4, 6>();
      if constexpr (kPanels == 2) {
        tile_load<7>(b + panel_bytes, kWeightStride);
        add_product<2, 4, 7>();
        tile_load<5>(b + panel_bytes + kWeightNext, kWeightStride);
        add_product<3, 4, 5>();
      }
      if (only) {
        // Behind the end of each panel lies what comes after all of these.
        const std::size_t over = step + kAheadSteps < steps ? 0 : (kPanels - 1) * panel_bytes;
        const char* const ahead = b + kAheadSteps * kStepBytes + over;
        for (std::size_t p = 0; p < kPanels; ++p) {
          Fetcher{ahead + p * panel_bytes, kStepBytes / kLine}.step();
        }
      }
      a += kTileRowBytes;
      b += kStepBytes;
    }
    tile_store<0>(c, kResultStride);
    tile_store<1>(c + Vec::kLanes, kResultStride);
    if constexpr (kPanels == 2) {
      tile_store<2>(c + kTile, kResultStride);
      tile_store<3>(c + kTile + Vec::kLanes, kResultStride);
    }
  }

  const kosine::GemmArgs& args_;
  const RowTiles tiles_;
  const std::size_t lda_;  // bytes
  const Parts parts_;
  const std::size_t panel_bytes_;
  Finisher<kEpilogue> unfinished_;
  Room room_;
};

// Tiles belong to a thread. They are given their shape and handed back within a call, so that no
// thread waits, sleeps or returns to its caller with tiles that the system must keep for it.
void gemm(const kosine::GemmArgs& args) {
  using kosine::Epilogue;
  if (args.rows == 0 || args.panels == 0) return;  // a tile cannot have no rows
  const TileConfig shapes = tile_shapes(RowTiles{args.rows}.height());
  tile_configure(shapes);
  switch (args.epilogue) {
    case Epilogue::kStore: Product<Epilogue::kStore>(args).run(); break;
    case Epilogue::kHeads: Product<Epilogue::kHeads>(args).run(); break;
    case Epilogue::kAdd: Product<Epilogue::kAdd>(args).run(); break;
    case Epilogue::kGelu: Product<Epilogue::kGelu>(args).run(); break;
    case Epilogue::kGeluTanh: Product<Epilogue::kGeluTanh>(args).run(); break;
    case Epilogue::kSilu: Product<Epilogue::kSilu>(args).run(); break;
    case Epilogue::kGate: Product<Epilogue::kGate>(args).run(); break;
  }
  tile_release();
}

}  // namespace
