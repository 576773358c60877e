// What attention multiplies, in bfloat16 and in tiles of AMX. Panels and words are those of the
// vectors (heads_bfloat16.h): sixteen words, 32 numbers of a head or 32 keys, are the tile of a step.
//
// A context's last step has tiles of as many words as there are, so that nothing is read of keys
// that no row of the tile sees. Steps begin every 32 keys, counted from the sentence's first, and
// weights of zero change no sum: a row has the same bits whatever comes behind what it sees. Of heads
// that 32 does not divide the last 16 numbers are added on vectors.
#pragma once

#include "amx_tile.h"
#include "heads_bfloat16.h"
#include "kernels.h"
#include "tile.h"

namespace {

struct TileHeads : BfloatHeads {
  // Tiles as a call of attention has shaped them. Those of rows have as many as attention ever
  // takes: with fewer, the others are what the buffers held before. There is room for them, and no
  // row sees another.
  class Unit {
   public:
    Unit() = default;
    ~Unit() { tile_release(); }
    Unit(const Unit&) = delete;
    Unit& operator=(const Unit&) = delete;

    // For weights of so many words. Shaping takes as long as a dozen products, and all tiles of
    // rows that see the same keys have the same shapes.
    void prepare(std::size_t words) {
      const std::size_t rest = words % kTileHeight;
      if (rest == rest_) return;
      rest_ = rest;
      TileConfig shapes;
      const auto shape = [&](int first, int last, std::size_t rows, std::size_t bytes) {
        for (int t = first; t <= last; ++t) {
          shapes.rows[t] = static_cast<std::uint8_t>(rows);
          shapes.row_bytes[t] = static_cast<std::uint16_t>(bytes);
        }
      };
      shape(0, 1, kTileRows, kTileRowBytes);    // sums
      shape(2, 2, kTileRows, kTileRowBytes);    // rows
      shape(3, 4, kTileHeight, kTileRowBytes);  // panels
      if (rest != 0) {
        shape(5, 5, kTileRows, 4 * rest);
        shape(6, 7, rest, kTileRowBytes);
      }
      tile_configure(shapes);
    }

   private:
    std::size_t rest_ = kTileHeight;  // no shapes yet
  };

  template <int R, int C>
  [[gnu::always_inline]] static void scores(Vec (&acc)[R][C], const char* q, std::size_t stride,
                                            Panel keys, std::size_t steps) {
    multiply_whole<C>(q, stride, keys, steps);
    sums_of(acc);
    add_products<Dot, R, C, false>(acc, q, stride, keys, steps, {});
  }

  template <int R, int C>
  [[gnu::always_inline]] static void context(Vec (&acc)[R][C], const char* weights,
                                             std::size_t stride, Panel values, std::size_t steps) {
    multiply_whole<C>(weights, stride, values, steps);
    if (steps != 0) multiply_step<C, 5, 6>(weights, stride, values);
    sums_of(acc);
  }

 private:
  // All whole steps; the arguments become what is left.
  template <int C>
  [[gnu::always_inline]] static void multiply_whole(const char*& a, std::size_t stride,
                                                    Panel& panel, std::size_t& steps) {
    tile_zero<0>();
    if constexpr (C == 2) tile_zero<1>();
    for (; steps >= kTileHeight; steps -= kTileHeight) {
      multiply_step<C, 2, 3>(a, stride, panel);
      a += kTileRowBytes;
      panel.at += kTileHeight * panel.stride;
    }
  }

  // Tile A takes rows, B and the one behind it take 16 columns each.
  template <int C, int A, int B>
  [[gnu::always_inline]] static void multiply_step(const char* a, std::size_t stride, Panel panel) {
    static_assert(C == 1 || C == 2);
    tile_load<A>(a, stride);
    tile_load<B>(panel.at, panel.stride);
    tile_dot<0, A, B>();
    if constexpr (C == 2) {
      tile_load<B + 1>(panel.at + kTileRowBytes, panel.stride);
      tile_dot<1, A, B + 1>();
    }
  }

  template <int R, int C>
  [[gnu::always_inline]] static void sums_of(Vec (&acc)[R][C]) {
    alignas(kLine) float sums[kTileRows][C * Vec::kLanes];
    tile_store<0>(sums, sizeof *sums);
    if constexpr (C == 2) tile_store<1>(sums[0] + Vec::kLanes, sizeof *sums);
#pragma GCC unroll 16
    for (std::size_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (std::size_t c = 0; c < C; ++c) acc[r][c] = Vec::load(sums[r] + c * Vec::kLanes);
    }
  }
};

}  // namespace
