// The product of a matrix with packed panels (amx_pack.h), on AMX.
//
// The tiles of a step, 32 of the depth, where there are more than 16 rows: 4 loads, 4 products.
//
//                      b0 | b1            A tile of the result takes one product in each step, in
//              a0      c0 | c1            the order of the depth, whatever else is computed with
//              a1      c2 | c3            it. It may be put by in memory and taken up again on
//                                         the way, which changes no bit of it.
//
// A last tile of rows without a partner, or the only one, takes two panels: a0 x (b0 .. b3). With
// two tiles of the result alone, each product would wait for the one before.
//
// All tiles have the same height: 16, or `rows` where those are fewer. Where 16 does not divide
// the rows, the last tile begins early enough to end with them; the rows that it has in common
// with the tile before come out the same, and are not written again.
//
// Epilogues are vector code, and vectors and tiles are different units of the processor: a block
// of the result is finished row by row between the steps of the next block.
//
// Accumulator bounds: in a step the products of even and of odd depth are summed apart, 16 each,
// in float32, and the two sums are added to c. A sum of K products is off by at most about
// (17 + K / 32) * 2^-24 of the sum of their magnitudes.
#pragma once

#include "amx_pack.h"
#include "amx_tile.h"
#include "epilogue.h"
#include "kernels.h"
#include "tile.h"

namespace {

// Enough rows to hide fetching the weights behind the arithmetic, which is several times as fast
// as with vectors; few enough that activations stay in the L2 cache.
constexpr std::size_t kChunkRows = 512;
constexpr std::size_t kAloneRows = 128;
constexpr std::size_t kGemmScratch = 0;

// Blocks of 32 rows take a part of the depth one after another, so that this part of the panel
// (16 KiB) and their results (16 KiB) stay in the L1 cache while the rows pass through it from
// the L2 cache.
constexpr std::size_t kGroupBlocks = 4;
constexpr std::size_t kPartSteps = 8;
constexpr std::size_t kWholeSteps = 12;  // a panel of 24 KiB stays there without being cut
// How far ahead of a product weights are fetched when each is used once: 8 KiB of a panel.
constexpr std::size_t kAheadSteps = 4;

constexpr std::size_t kResultStride = kPanel * sizeof(float);
constexpr std::size_t kTile = kTileHeight * kPanel;  // floats of one row tile of a panel
constexpr std::size_t kBlock = 2 * kTile;
constexpr std::size_t kBlockRows = 2 * kTileHeight;

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

// c0 .. c3 and a0 in tiles of the rows' height; a1 shares its shape with the weight's tiles, since
// there are two tiles of rows only where their height is 16.
inline TileConfig tile_shapes(std::size_t height) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.row_bytes[t] = kTileRowBytes;
    config.rows[t] = static_cast<std::uint8_t>(t < 5 ? height : kTileHeight);
  }
  return config;
}

// Rows of a panel of the result on their way from `c`, as many at a time as there is time for.
template <kosine::Epilogue kEpilogue>
class Finisher {
 public:
  Finisher() = default;
  Finisher(const float* c, const kosine::GemmArgs& args, std::size_t panel, std::size_t row,
           std::size_t count)
      : c_(c),
        out_(static_cast<Out*>(args.out) + row * args.ldo + panel * kPanel),
        ldo_(args.ldo),
        left_(count),
        bias_{Vec::load(args.bias + panel * kPanel),
              Vec::load(args.bias + panel * kPanel + Vec::kLanes)} {}

  std::size_t left() const { return left_; }

  [[gnu::always_inline]] void step(std::size_t count) {
    count = count < left_ ? count : left_;
    left_ -= count;
    for (; count != 0; --count) {
      finish<kEpilogue>(Vec::load(c_) + bias_[0], out_, 0);
      finish<kEpilogue>(Vec::load(c_ + Vec::kLanes) + bias_[1], out_, Vec::kLanes);
      c_ += kPanel;
      out_ += ldo_;
    }
  }

 private:
  using Out = typename OutputOf<kEpilogue>::Type;

  const float* c_ = nullptr;
  Out* out_ = nullptr;
  std::size_t ldo_ = 0;
  std::size_t left_ = 0;
  Vec bias_[2] = {Vec::zero(), Vec::zero()};
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

template <kosine::Epilogue kEpilogue>
class Product {
 public:
  explicit Product(const kosine::GemmArgs& args)
      : args_(args),
        tiles_{args.rows},
        lda_(args.lda * sizeof(Dot::Activation)),
        steps_(args.depth / kDepthStep),
        panel_bytes_(steps_ * kStepBytes) {}

  void run() {
    for (std::size_t panel = 0; panel < args_.panels; panel += 2) {
      const bool two = panel + 1 < args_.panels;
      pairs(panel);
      if (two) pairs(panel + 1);
      if (tiles_.count() % 2 == 0) continue;
      finish_block();
      if (two) {
        last<2>(panel);
      } else {
        last<1>(panel);
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

  // All pairs of row tiles with one panel, while the next panel is on its way.
  void pairs(std::size_t panel) {
    const std::size_t blocks = tiles_.count() / 2;
    if (blocks == 0) return;
    Fetcher next{weight(panel + 1), (kStepBytes / kLine + blocks - 1) / blocks};
    for (std::size_t group = 0; group < blocks; group += kGroupBlocks) {
      const std::size_t end = group + kGroupBlocks < blocks ? group + kGroupBlocks : blocks;
      // A block by itself reads the panel once: there is nothing to keep.
      const bool whole = end - group == 1 || steps_ <= kWholeSteps;
      const std::size_t parts = whole ? 1 : (steps_ + kPartSteps - 1) / kPartSteps;
      for (std::size_t part = 0; part < parts; ++part) {
        const std::size_t from = steps_ * part / parts;
        const std::size_t to = steps_ * (part + 1) / parts;
        for (std::size_t block = group; block < end; ++block) {
          float* const c = results_ + (block - group) * kBlock;
          multiply(c, block, panel, from, to, next);
          if (to != steps_) continue;
          unfinished_ = Finisher<kEpilogue>(c, args_, panel, block * kBlockRows,
                                            kBlockRows - tiles_.shared(2 * block + 1));
        }
      }
    }
  }

  // Steps from .. to of a block, and all that is left to do for the block before, which may lie in
  // the same place: `c` is written last. Rows of `c` are those of the result: where two row tiles
  // share some, both write them, and write the same.
  [[gnu::noinline]] void multiply(float* c, std::size_t block, std::size_t panel,
                                  std::size_t from, std::size_t to, Fetcher& next) {
    const std::size_t upper = tiles_.begin(2 * block), lower = tiles_.begin(2 * block + 1);
    float* const c2 = c + (lower - upper) * kPanel;
    if (from == 0) {
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
    const char* a0 = row(upper) + from * kTileRowBytes;
    const char* a1 = row(lower) + from * kTileRowBytes;
    const char* b = weight(panel) + from * kStepBytes;
    std::size_t steps = to - from;
    const std::size_t rows = (unfinished_.left() + steps - 1) / steps;
    Finisher<kEpilogue> before = unfinished_;  // copies, to be kept in registers
    Fetcher fetcher = next;
    unfinished_ = {};
    do {
      tile_load<6>(b, kTileRowBytes);
      tile_load<4>(a0, lda);
      tile_dot<0, 4, 6>();
      tile_load<7>(b + kTileBytes, kTileRowBytes);
      tile_dot<1, 4, 7>();
      tile_load<5>(a1, lda);
      tile_dot<2, 5, 6>();
      tile_dot<3, 5, 7>();
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
    const std::size_t tile = tiles_.count() - 1;
    const std::size_t lda = lda_, steps = steps_, panel_bytes = panel_bytes_;
    const char* a = row(tiles_.begin(tile));
    const char* b = weight(panel);
    const bool only = tile == 0;  // else the panels are in the L2 cache by now
    tile_zero<0>();
    tile_zero<1>();
    if constexpr (kPanels == 2) {
      tile_zero<2>();
      tile_zero<3>();
    }
    for (std::size_t step = 0; step < steps; ++step) {
      tile_load<4>(a, lda);
      tile_load<5>(b, kTileRowBytes);
      tile_dot<0, 4, 5>();
      tile_load<6>(b + kTileBytes, kTileRowBytes);
      tile_dot<1, 4, 6>();
      if constexpr (kPanels == 2) {
        tile_load<7>(b + panel_bytes, kTileRowBytes);
        tile_dot<2, 4, 7>();
        tile_load<5>(b + panel_bytes + kTileBytes, kTileRowBytes);
        tile_dot<3, 4, 5>();
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
    float* const c = results_;
    tile_store<0>(c, kResultStride);
    tile_store<1>(c + Vec::kLanes, kResultStride);
    if constexpr (kPanels == 2) {
      tile_store<2>(c + kTile, kResultStride);
      tile_store<3>(c + kTile + Vec::kLanes, kResultStride);
    }
    const std::size_t shared = tiles_.shared(tile), count = tiles_.height() - shared;
    for (std::size_t p = 0; p < kPanels; ++p) {
      Finisher<kEpilogue>(c + p * kTile + shared * kPanel, args_, panel + p, tile * kTileHeight,
                          count)
          .step(count);
    }
  }

  const kosine::GemmArgs& args_;
  const RowTiles tiles_;
  const std::size_t lda_;  // bytes
  const std::size_t steps_;
  const std::size_t panel_bytes_;
  Finisher<kEpilogue> unfinished_;
  alignas(kLine) float results_[kGroupBlocks * kBlock];
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
    case Epilogue::kAdd: Product<Epilogue::kAdd>(args).run(); break;
    case Epilogue::kGelu: Product<Epilogue::kGelu>(args).run(); break;
    case Epilogue::kGeluTanh: Product<Epilogue::kGeluTanh>(args).run(); break;
    case Epilogue::kSilu: Product<Epilogue::kSilu>(args).run(); break;
    case Epilogue::kGate: Product<Epilogue::kGate>(args).run(); break;
  }
  tile_release();
}

}  // namespace
