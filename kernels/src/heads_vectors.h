// Attention's products on vectors.
#pragma once

#include "tile.h"

namespace {

template <class Products>
struct VectorHeads {
  using Dot = Products;

  // What a call of attention sets up to multiply: nothing here.
  struct Unit {
    void prepare(std::size_t) {}
  };

  // Rows of q times keys, over `steps` words of a head.
  template <int R, int C>
  [[gnu::always_inline]] static void scores(Vec (&acc)[R][C], const char* q, std::size_t stride,
                                            Panel keys, std::size_t steps) {
    multiply<Dot, R, C, false>(acc, q, stride, keys, steps, {});
  }

  // Rows of weights times values, over `steps` words of keys.
  template <int R, int C>
  [[gnu::always_inline]] static void context(Vec (&acc)[R][C], const char* weights,
                                             std::size_t stride, Panel values, std::size_t steps) {
    multiply<Dot, R, C, false>(acc, weights, stride, values, steps, {});
  }
};

}  // namespace
