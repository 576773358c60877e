// What attention multiplies, in bfloat16: q, k, v and the weights are rounded, and summed in
// float32. Words are two neighbours of a head for scores, and of the keys for the context.
//
// Weights are divided by the sum of what they were rounded to, so that a row's weights add up to
// one and rounding them moves its context by no more than it moves them against each other.
#pragma once

#include "dot_bfloat16.h"
#include "heads_vectors.h"
#include "kernels.h"
#include "tile.h"

namespace {

struct BfloatHeads : VectorHeads<BfloatDot> {
  static constexpr bool kRounds = true;
  static constexpr std::size_t kWord = Dot::kStep;
  static constexpr std::size_t kWeightStep = kWord * Vec::kLanes;
  // Each group packs all keys anew: three times as many rows, beside half the bytes.
  static constexpr std::size_t kGroupRows = 1008;

  // Floats of scratch: for so many rows, and for the values of a block of `keys`.
  static std::size_t query_room(std::size_t rows, std::size_t head_size) {
    return rows * head_size / kWord;
  }
  static std::size_t value_room(std::size_t keys, std::size_t head_size) {
    return keys / kWord * head_size;
  }

  static Panel queries(const float* q, std::size_t ld, std::size_t rows, std::size_t head_size,
                       float* room) {
    auto* to = reinterpret_cast<std::uint16_t*>(room);
    for (std::size_t r = 0; r < rows; ++r, q += ld, to += head_size) {
      for (std::size_t d = 0; d < head_size; d += Vec::kLanes) Dot::store(Vec::load(q + d), to + d);
    }
    return {reinterpret_cast<const char*>(room), head_size * sizeof *to};
  }

  // A vector of words of a key, from number `d` on; zeros behind its end.
  static Vec key_words(const float* key, std::size_t d, std::size_t head_size) {
    const Vec low = Vec::load(key + d);
    const bool more = d + Vec::kLanes < head_size;
    return both_rounded(low, more ? Vec::load(key + d + Vec::kLanes) : Vec::zero());
  }

  // values (length, head_size) -> for every 32 columns a panel (pairs of keys, 32), for a last 16
  // one of 16; a value of zero behind an odd number of keys.
  static void pack_values(const float* v, std::size_t ld, std::size_t length,
                          std::size_t head_size, float* to) {
    const std::size_t pairs = (length + 1) / kWord;
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const float* even = v + pair * kWord * ld;
      const bool two = pair * kWord + 1 < length;
      for (std::size_t d = 0; d < head_size; d += Vec::kLanes) {
        const Vec odd = two ? Vec::load(even + ld + d) : Vec::zero();
        in_words(Vec::load(even + d), odd).store(to + place_of(pair, d, pairs, head_size));
      }
    }
  }

  // Those of a block, as packed.
  struct Values {
    const float* packed;
    std::size_t pairs;  // of keys
    std::size_t head_size;

    // Columns from `d` on of the keys behind the first `skipped`.
    Panel panel(std::size_t skipped, std::size_t d) const {
      const std::size_t width = panel_width(d, head_size);
      const float* at = packed + panel_at(d, pairs) + skipped / kWord * width;
      return {reinterpret_cast<const char*>(at), width * sizeof(float)};
    }
  };

  static Values values(const float*, std::size_t, float* packed, std::size_t keys,
                       std::size_t head_size) {
    return {packed, (keys + 1) / kWord, head_size};
  }

  static Vec exp(Vec x) { return power_of_two(x * Vec::all(kLog2E)); }

  // Scores become weights exp((score - most) * scale), rounded and packed to half the space, with
  // zeros up to a whole vector of words; this is the sum of what they are rounded to.
  static float weigh(float* scores, std::size_t length, float most, float scale) {
    const auto words = [](Vec low, Vec high) {
      return both_rounded(power_of_two(low), power_of_two(high));
    };
    return weigh_in(words, scores, length, most, scale);
  }

  static void clear_weights(float* weights, std::size_t begin, std::size_t end) {
    auto* words = reinterpret_cast<std::uint16_t*>(weights);
    for (std::size_t i = begin; i < end; ++i) words[i] = 0;
  }

 protected:
  static constexpr float kLog2E = 1.44269504f;

  // `words` makes them of two vectors of powers of two.
  template <class Words>
  [[gnu::always_inline]] static float weigh_in(const Words& words, float* scores,
                                               std::size_t length, float most, float scale) {
    constexpr std::size_t kLanes = Vec::kLanes;
    const Vec factor = Vec::all(scale * kLog2E);
    const Vec shift = Vec::all(-most * scale * kLog2E);
    const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
    auto* to = reinterpret_cast<char*>(scores);
    Vec sums = Vec::zero();
    const auto take = [&](Vec low, Vec high) {
      const Vec weights = words(fma(low, factor, shift), fma(high, factor, shift));
      weights.store(reinterpret_cast<float*>(to));
      to += sizeof weights;
      sums.v = _mm512_dpbf16_ps(sums.v, (__m512bh)weights.v, ones);
    };
    std::size_t i = 0;
    for (; i + 2 * kLanes <= length; i += 2 * kLanes) {
      take(Vec::load(scores + i), Vec::load(scores + i + kLanes));
    }
    if (i < length) {
      const Vec none = Vec::all(-__builtin_inff());
      const std::size_t left = length - i;
      take(keep(Vec::load(scores + i), left, none),
           left > kLanes ? keep(Vec::load(scores + i + kLanes), left - kLanes, none) : none);
    }
    return sum(sums);
  }

  // 2^x for x <= 0, relative error under 4e-6: a polynomial of degree 4 in x - floor(x), exact at
  // both ends. What is rounded to bfloat16 is off by a thousand times as much. 0 for -infinity.
  // `more` is added to the digits before they are multiplied by the power.
  static Vec power_of_two(Vec x, float more = 0.0f) {
    constexpr int kLessFloor = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    const Vec r = {_mm512_reduce_ps(x.v, kLessFloor)};
    Vec p = Vec::all(0.01355723012238741f);
    p = fma(p, r, Vec::all(0.0520302839577198f));
    p = fma(p, r, Vec::all(0.24138008058071136f));
    p = fma(p, r, Vec::all(0.6930323839187622f));
    p = fma(p, r, Vec::all(1.0f + more));
    return {_mm512_scalef_ps(p.v, x.v)};
  }

  // Words of one of `low` and one of `high`.
  static Vec in_words(Vec low, Vec high) {
    const __m512i halves = (__m512i)both_rounded(low, high).v;
    return {_mm512_castsi512_ps(_mm512_permutexvar_epi16(alternately(), halves))};
  }

  // Thirty-two bfloat16, those of `low` first.
  static Vec both_rounded(Vec low, Vec high) {
    return {(__m512)_mm512_cvtne2ps_pbh(high.v, low.v)};
  }

  // One of the first half, one of the second, and so on.
  static __m512i alternately() {
    const __m512i first = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_or_si512(first, _mm512_slli_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(16)),
                                                    16));
  }

  static std::size_t place_of(std::size_t pair, std::size_t d, std::size_t pairs,
                              std::size_t head_size) {
    return panel_at(d, pairs) + pair * panel_width(d, head_size) + d % 32;
  }
  static std::size_t panel_at(std::size_t d, std::size_t pairs) { return d / 32 * 32 * pairs; }
  static std::size_t panel_width(std::size_t d, std::size_t head_size) {
    return d / 32 * 32 + 32 <= head_size ? 32 : 16;
  }
};

}  // namespace
