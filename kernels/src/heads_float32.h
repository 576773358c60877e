// What attention multiplies, in floats: rows of q and v are read where they lie.
#pragma once

#include "dot_float32.h"
#include "exponential.h"
#include "heads_vectors.h"
#include "kernels.h"
#include "tile.h"

namespace {

struct FloatHeads : VectorHeads<FloatDot> {
  using Element = float;
  static constexpr std::size_t kWord = Dot::kStep;  // numbers of a head, or keys, in a word
  static constexpr std::size_t kWeightStep = Vec::kLanes;
  static constexpr std::size_t kGroupRows = 336;    // whose contexts stay in L2 beside a block

  static void store(Vec x, float* to) { x.store(to); }
  static void round_rows(const kosine::RoundHeadsArgs&) {}

  static std::size_t query_room(std::size_t, std::size_t) { return 0; }
  static std::size_t value_room(std::size_t, std::size_t) { return 0; }

  static Panel queries(const float* q, std::size_t ld, std::size_t, std::size_t, float*) {
    return {reinterpret_cast<const char*>(q), ld * sizeof(float)};
  }

  // A vector of words of a key, from number `d` on.
  static Vec key_words(const float* key, std::size_t d, std::size_t) { return Vec::load(key + d); }

  static void pack_values(const float*, std::size_t, std::size_t, std::size_t, float*) {}

  // Those of a block.
  struct Values {
    const float* v;
    std::size_t ld;
    std::size_t head_size;

    // Columns from `d` on of the keys behind the first `skipped`.
    Panel panel(std::size_t skipped, std::size_t d) const {
      return {reinterpret_cast<const char*>(v + skipped * ld + d), ld * sizeof(float)};
    }
  };

  static Values values(const Element* v, std::size_t ld, float*, std::size_t,
                       std::size_t head_size) {
    return {v, ld, head_size};
  }

  static Vec exp(Vec x) { return exp_negative(x); }

  // Scores become weights exp((score - most) * scale), in place, and this is their sum.
  static float weigh(float* scores, std::size_t length, float most, float scale) {
    constexpr std::size_t kLanes = Vec::kLanes;
    const std::size_t whole = length / kLanes * kLanes;
    const Vec highest = Vec::all(most), factor = Vec::all(scale);
    Vec sums = Vec::zero();
    std::size_t i = 0;
    for (; i < whole; i += kLanes) {
      const Vec weight = exp_negative((Vec::load(scores + i) - highest) * factor);
      weight.store(scores + i);
      sums = sums + weight;
    }
    if (i < length) {
      const Vec weight = exp_negative((Vec::load(scores + i) - highest) * factor);
      const Vec kept = keep(weight, length - i, Vec::zero());
      kept.store(scores + i);
      sums = sums + kept;
    }
    return sum(sums);
  }

  static void clear_weights(float* weights, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) weights[i] = 0.0f;
  }
};

}  // namespace
