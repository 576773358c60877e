// The register tile: up to kTileRows x 2 vectors of a product, all of them in registers.
//
//                     panel of the weight: one row of 2 vectors per step
//                     +----------+----------+
//                     |  b[k,0]  |  b[k,1]  |   k = 0 .. steps
//                     +----------+----------+
//     +--------+      +----------+----------+
//     | a[0,k] |  ->  | acc[0,0] | acc[0,1] |
//     | a[1,k] |  ->  | acc[1,0] | acc[1,1] |   acc[r,c] += broadcast(a[r,k]) * b[k,c]
//     |   ...  |      |   ...    |   ...    |
//     +--------+      +----------+----------+
//
// A "word" is 32 bits of the depth axis: one float, or two neighbouring bfloat16. A step takes
// one word of each row of a, so both dtypes share this file and differ in `Dot` alone.
//
// Every accumulator is one chain of multiply-adds in the order of k, whatever the height of the
// tile: that is why a row's result does not depend on how many rows there are. It also means
// that a tile wants at least 8 accumulators (2 units x 4 cycles of latency) to keep the
// multipliers fed; only products of fewer than 4 rows have less, and those wait for memory.
//
// Accumulator bounds: a sum of K products in float32 is off by at most about K * 2^-24 of the
// sum of their magnitudes; K is at most one slice of the feed-forward (~800 words) or the
// hidden size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

constexpr std::size_t kLine = 64;

// Vector columns of the weight that a step reads: word-aligned rows `stride` bytes apart.
struct Panel {
  const char* at;
  std::size_t stride;
};

// Weights that the next tiles need, on their way from memory: each step asks for the two lines at
// `at`, then moves on by `advance` bytes. (Two, since a tile that has the panel to itself has two
// lines to fetch in each step; tiles that share one ask for some lines twice, which costs nothing.)
struct Ahead {
  const char* at;
  std::size_t advance;
};

template <class Dot, int R, int C, bool kPrefetch>
[[gnu::always_inline]] inline void add_products(Vec (&acc)[R][C], const char* a, std::size_t lda,
                                                Panel panel, std::size_t steps, Ahead ahead) {
  for (std::size_t k = 0; k < steps; ++k) {
    typename Dot::Words b[C];
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) b[c] = Dot::load(panel.at + c * Dot::kVectorBytes);
    panel.at += panel.stride;
    if constexpr (kPrefetch) {
      _mm_prefetch(ahead.at, _MM_HINT_T1);
      _mm_prefetch(ahead.at + kLine, _MM_HINT_T1);
      ahead.at += ahead.advance;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const typename Dot::Words word = Dot::broadcast(a + r * lda + k * 4);
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) acc[r][c] = Dot::add_product(acc[r][c], word, b[c]);
    }
  }
}

template <class Dot, int R, int C, bool kPrefetch>
[[gnu::always_inline]] inline void multiply(Vec (&acc)[R][C], const char* a, std::size_t lda,
                                            Panel panel, std::size_t steps, Ahead ahead) {
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) acc[r][c] = Vec::zero();
  }
  add_products<Dot, R, C, kPrefetch>(acc, a, lda, panel, steps, ahead);
}

}  // namespace
