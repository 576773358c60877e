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
  using Element = std::uint16_t;
  static constexpr std::size_t kWord = Dot::kStep;
  static constexpr std::size_t kWeightStep = kWord * Vec::kLanes;
  // Each group packs all keys anew: three times as many rows, beside half the bytes.
  static constexpr std::size_t kGroupRows = 1008;

  static void store(Vec x, Element* to) { Dot::store(x, to); }

  static void round_rows(const kosine::RoundHeadsArgs& args) {
    for (std::size_t r = 0; r < args.rows; ++r) {
      const float* from = args.x + r * args.ld;
      auto* to = reinterpret_cast<Element*>(args.x + r * args.ld);
      for (std::size_t i = 0; i < args.width; i += Vec::kLanes) store(Vec::load(from + i), to + i);
    }
  }

  // Floats of scratch: for so many rows, and for the values of a block of `keys`.
  static std::size_t query_room(std::size_t, std::size_t) { return 0; }
  static std::size_t value_room(std::size_t keys, std::size_t head_size) {
    return keys / kWord * head_size;
  }

  static Panel queries(const Element* q, std::size_t ld, std::size_t, std::size_t, float*) {
    return {reinterpret_cast<const char*>(q), ld * sizeof *q};
  }

  // A vector of words of a key, from number `d` on; zeros behind its end.
  static Vec key_words(const Element* key, std::size_t d, std::size_t head_size) {
    if (d + 2 * Vec::kLanes <= head_size) {
      return {_mm512_castsi512_ps(_mm512_loadu_si512(key + d))};
    }
    return {_mm512_castsi512_ps(_mm512_zextsi256_si512(half_vector(key + d)))};
  }

  // values (length, head_size) -> for every 32 columns a panel (pairs of keys, 32), for a last 16
  // one of 16; a value of zero behind an odd number of keys.
  static void pack_values(const Element* v, std::size_t ld, std::size_t length,
                          std::size_t head_size, float* to) {
    const std::size_t pairs = (length + 1) / kWord;
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const Element* even = v + pair * kWord * ld;
      const bool two = pair * kWord + 1 < length;
      for (std::size_t d = 0; d < head_size; d += Vec::kLanes) {
        in_words(even + d, two ? even + ld + d : nullptr)
            .store(to + place_of(pair, d, pairs, head_size));
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

  static Values values(const Element*, std::size_t, float* packed, std::size_t keys,
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

  // Words of one of sixteen numbers at `low` and one of those at `high`, zeros where null.
  static Vec in_words(const Element* low, const Element* high) {
    const auto words = [](const Element* at) {
      return at == nullptr ? _mm512_setzero_si512() : _mm512_cvtepu16_epi32(half_vector(at));
    };
    return {_mm512_castsi512_ps(_mm512_or_si512(words(low), _mm512_slli_epi32(words(high), 16)))};
  }

  static __m256i half_vector(const Element* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }

  // Thirty-two bfloat16, those of `low` first.
  static Vec both_rounded(Vec low, Vec high) {
    return {(__m512)_mm512_cvtne2ps_pbh(high.v, low.v)};
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
