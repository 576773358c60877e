// Attention's products on vectors: a tile of rows is the register tile of products.
#pragma once

#include "tile.h"

namespace {

template <class Products>
struct VectorHeads {
  using Dot = Products;

  static constexpr std::size_t kRows = kTileRows, kWindowRows = kTileRows, kRowUnit = 1;
  static constexpr std::size_t kKeyStep = Vec::kLanes;
  // Part of the arithmetic: a sum over keys is one of sums over blocks. A tile's scores, 14 rows
  // of it, are 28 KiB and stay in the L1 cache; its keys and values stay in L2: 256 KiB for heads
  // of 64 in floats.
  static constexpr std::size_t kKeyBlock = 512;

  struct Unit {};  // what a call sets up: nothing here

  static std::size_t words(std::size_t head_size) { return head_size / Dot::kStep; }

  // Rows of q times the first `stop` keys, to `out`. Panels are two vectors wide, but for the last
  // one of `padded` keys.
  static void scores(Panel q, std::size_t rows, const float* panels, std::size_t words,
                     std::size_t padded, std::size_t stop, float* out, std::size_t stride) {
    kOfRows[rows - 1].scores(q, panels, words, padded, stop, out, stride);
  }

  // Rows of weights times the values of `count` keys behind the first `skipped`.
  template <class Values>
  static void context(const float* weights, std::size_t stride, std::size_t rows,
                      const Values& values, std::size_t skipped, std::size_t count, float* out) {
    const std::size_t steps = (count + Dot::kStep - 1) / Dot::kStep;
    const auto* at = reinterpret_cast<const char*>(weights);
    constexpr std::size_t kPair = 2 * Vec::kLanes;
    const std::size_t width = values.head_size;
    for (std::size_t d = 0; d < width; d += kPair) {
      const auto& of_rows = kOfRows[rows - 1];
      const auto one = d + kPair <= width ? of_rows.contexts : of_rows.last_contexts;
      one(at, stride * sizeof(float), values.panel(skipped, d), steps, out + d, width);
    }
  }

 private:
  template <int R, int C>
  static void product(const char* a, std::size_t lda, Panel panel, std::size_t steps, float* out,
                      std::size_t stride) {
    Vec acc[R][C];
    multiply<Dot, R, C, false>(acc, a, lda, panel, steps, {});
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < C; ++c) acc[r][c].store(out + r * stride + c * Vec::kLanes);
    }
  }

  template <int R>
  static void scores_of(Panel q, const float* panels, std::size_t words, std::size_t padded,
                        std::size_t stop, float* out, std::size_t stride) {
    constexpr std::size_t kLanes = Vec::kLanes;
    std::size_t key = 0;
    for (; key + 2 * kLanes <= padded && key < stop; key += 2 * kLanes) {
      const auto* panel = reinterpret_cast<const char*>(panels + key * words);
      product<R, 2>(q.at, q.stride, {panel, 2 * sizeof(Vec)}, words, out + key, stride);
    }
    if (key < stop) {
      const auto* panel = reinterpret_cast<const char*>(panels + key * words);
      product<R, 1>(q.at, q.stride, {panel, sizeof(Vec)}, words, out + key, stride);
    }
  }

  struct OfRows {
    void (*scores)(Panel, const float*, std::size_t, std::size_t, std::size_t, float*,
                   std::size_t);
    void (*contexts)(const char*, std::size_t, Panel, std::size_t, float*, std::size_t);
    void (*last_contexts)(const char*, std::size_t, Panel, std::size_t, float*, std::size_t);
  };
  template <int R>
  static constexpr OfRows of = {scores_of<R>, product<R, 2>, product<R, 1>};
  static constexpr OfRows kOfRows[] = {
      of<1>,  of<2>,  of<3>,  of<4>,  of<5>,  of<6>,
#if defined(__AVX512F__)
      of<7>,  of<8>,  of<9>,  of<10>, of<11>, of<12>, of<13>, of<14>,
#endif
  };
  static_assert(sizeof kOfRows == kTileRows * sizeof(OfRows));
};

}  // namespace
