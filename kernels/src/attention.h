// Attention of one head of one sentence, over its own keys only: no mask and no padding tokens.
//
//   1. The keys are transposed into panels of two vectors of keys, the layout of a packed
//      weight, zeros after the last key.
//   2. For each tile of query rows: scores = q kT over all keys, softmax in place, then the
//      context = scores v, divided by the row's sum on the way out.
//
// Where a row does not see all, a tile multiplies with the keys that one of its rows sees, from a
// whole panel on, and each row's weights are zero where it sees none.
//
// Whole score rows are kept: kTileRows x 512 keys are 28 KiB and stay in the L1 cache, so there
// is nothing for an online softmax to save.
#pragma once

#include "kernels.h"
#include "rowwise.h"
#include "tile.h"

namespace {

inline std::size_t padded_keys(std::size_t length) {
  return (length + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
}

std::size_t attention_scratch(std::size_t length, std::size_t head_size) {
  return (head_size + kTileRows + 2) * padded_keys(length);
}

// keys (length, head_size) -> for each pair of key vectors a panel (head_size, 2 vectors); the
// last panel is one vector wide where the number of key vectors is odd.
inline void transpose_keys(const float* k, std::size_t ld, std::size_t length,
                           std::size_t head_size, float* to) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const std::size_t padded = padded_keys(length);
  for (std::size_t first = 0; first < padded; first += kLanes) {
    const std::size_t panel = first / (2 * kLanes) * (2 * kLanes);
    const std::size_t width = padded - panel < 2 * kLanes ? kLanes : 2 * kLanes;
    float* column = to + panel * head_size + (first - panel);
    for (std::size_t d = 0; d < head_size; d += kLanes) {
      Vec block[kLanes];
      for (std::size_t i = 0; i < kLanes; ++i) {
        block[i] = first + i < length ? Vec::load(k + (first + i) * ld + d) : Vec::zero();
      }
      transpose(block);
      for (std::size_t i = 0; i < kLanes; ++i) block[i].store(column + (d + i) * width);
    }
  }
}

// Scores become weights exp((score - max) * scale); zero after the last key. Gives 1 / their sum.
inline float softmax_row(float* scores, std::size_t length, float scale) {
  constexpr std::size_t kLanes = Vec::kLanes;
  Vec top = Vec::all(-__builtin_inff());
  for (std::size_t i = 0; i < length; i += kLanes) {
    top = max(top, keep(Vec::load(scores + i), length - i, top));
  }
  const Vec highest = Vec::all(largest(top));
  const Vec factor = Vec::all(scale);
  Vec total = Vec::zero();
  for (std::size_t i = 0; i < length; i += kLanes) {
    const Vec weight = exp_negative((Vec::load(scores + i) - highest) * factor);
    const Vec kept = keep(weight, length - i, Vec::zero());
    kept.store(scores + i);
    total = total + kept;
  }
  return 1.0f / sum(total);
}

// What the rows begin .. end see of `length` keys: from a whole panel on.
struct Keys {
  std::size_t begin;
  std::size_t end;
};

inline Keys keys_of(const kosine::AttentionArgs& args, std::size_t begin, std::size_t end) {
  constexpr std::size_t kPair = 2 * Vec::kLanes;
  const std::size_t first = begin > args.behind ? begin - args.behind : 0;
  return {first / kPair * kPair, args.length - end > args.ahead ? end + args.ahead : args.length};
}

// softmax_row over the keys that one row sees, out of those of its tile; zero for the others.
inline float softmax_window(const kosine::AttentionArgs& args, float* scores, Keys tile,
                            std::size_t row, float scale) {
  const std::size_t begin = row > args.behind ? row - args.behind : 0;
  const std::size_t end = args.length - row > args.ahead ? row + args.ahead + 1 : args.length;
  for (std::size_t i = tile.begin; i < begin; ++i) scores[i] = -__builtin_inff();
  const float inverse = softmax_row(scores + tile.begin, end - tile.begin, scale);
  for (std::size_t i = tile.begin; i < begin; ++i) scores[i] = 0.0f;
  for (std::size_t i = end; i < tile.end; ++i) scores[i] = 0.0f;
  return inverse;
}

// What distances add, one number for each from 1 - length to length - 1, so that a row reads its
// own in one go.
inline void spread_distances(const kosine::AttentionArgs& args, float* to) {
  const std::size_t last = args.length - 1;
  for (std::size_t i = 0; i <= 2 * last; ++i) {
    const std::size_t far = i < last ? last - i : i - last;
    const std::size_t reached = far < args.reach ? far : args.reach;
    to[i] = args.distances[i < last ? args.reach - reached : args.reach + reached];
  }
}

template <int R>
void attention_rows(const kosine::AttentionArgs& args, const float* keys, float* scores,
                    std::size_t row, float scale, const float* added) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const std::size_t padded = padded_keys(args.length);
  const char* q = reinterpret_cast<const char*>(args.q + row * args.ld);
  const Keys seen = keys_of(args, row, row + R);
  const std::size_t stop = padded_keys(seen.end);
  std::size_t key = seen.begin;
  for (; key + 2 * kLanes <= padded && key < stop; key += 2 * kLanes) {
    Vec acc[R][2];
    const auto* panel = reinterpret_cast<const char*>(keys + key * args.head_size);
    multiply<FloatDot, R, 2, false>(acc, q, args.ld * sizeof(float), {panel, 2 * sizeof(Vec)},
                                  args.head_size, {});
    for (int r = 0; r < R; ++r) {
      acc[r][0].store(scores + r * padded + key);
      acc[r][1].store(scores + r * padded + key + kLanes);
    }
  }
  if (key < stop) {
    Vec acc[R][1];
    const auto* panel = reinterpret_cast<const char*>(keys + key * args.head_size);
    multiply<FloatDot, R, 1, false>(acc, q, args.ld * sizeof(float), {panel, sizeof(Vec)},
                                  args.head_size, {});
    for (int r = 0; r < R; ++r) acc[r][0].store(scores + r * padded + key);
  }

  if (added != nullptr) {
    for (int r = 0; r < R; ++r) {
      const float* own = added + (args.length - 1 - row - r);
      for (std::size_t i = seen.begin; i < stop; i += kLanes) {
        float* score = scores + r * padded + i;
        (Vec::load(score) * Vec::all(scale) + Vec::load(own + i)).store(score);
      }
    }
    scale = 1.0f;
  }

  Vec inverse[R];
  for (int r = 0; r < R; ++r) {
    inverse[r] = Vec::all(softmax_window(args, scores + r * padded, seen, row + r, scale));
  }

  const char* weights = reinterpret_cast<const char*>(scores + seen.begin);
  const float* v = args.v + seen.begin * args.ld;
  const std::size_t count = seen.end - seen.begin;
  auto* out = static_cast<Output::Activation*>(args.out) + row * args.ldo;
  std::size_t d = 0;
  for (; d + 2 * kLanes <= args.head_size; d += 2 * kLanes) {
    Vec acc[R][2];
    multiply<FloatDot, R, 2, false>(acc, weights, padded * sizeof(float),
                                  {reinterpret_cast<const char*>(v + d),
                                   args.ld * sizeof(float)},
                                  count, {});
    for (int r = 0; r < R; ++r) {
      Output::store(acc[r][0] * inverse[r], out + r * args.ldo + d);
      Output::store(acc[r][1] * inverse[r], out + r * args.ldo + d + kLanes);
    }
  }
  if (d < args.head_size) {
    Vec acc[R][1];
    multiply<FloatDot, R, 1, false>(acc, weights, padded * sizeof(float),
                                  {reinterpret_cast<const char*>(v + d),
                                   args.ld * sizeof(float)},
                                  count, {});
    for (int r = 0; r < R; ++r) Output::store(acc[r][0] * inverse[r], out + r * args.ldo + d);
  }
}

using AttentionTile = void (*)(const kosine::AttentionArgs&, const float*, float*, std::size_t,
                               float, const float*);

constexpr AttentionTile kAttentionTiles[] = {
    attention_rows<1>,  attention_rows<2>,  attention_rows<3>,  attention_rows<4>,
    attention_rows<5>,  attention_rows<6>,
#if defined(__AVX512F__)
    attention_rows<7>,  attention_rows<8>,  attention_rows<9>,  attention_rows<10>,
    attention_rows<11>, attention_rows<12>, attention_rows<13>, attention_rows<14>,
#endif
};

void attention(const kosine::AttentionArgs& args) {
  static_assert(sizeof kAttentionTiles == kTileRows * sizeof(AttentionTile));
  float* const keys = args.scratch;
  float* const scores = keys + args.head_size * padded_keys(args.length);
  float* const added = args.distances == nullptr ? nullptr : scores + kTileRows * padded_keys(args.length);
  if (added != nullptr) spread_distances(args, added);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.head_size));
  transpose_keys(args.k, args.ld, args.length, args.head_size, keys);
  const std::size_t count = (args.length + kTileRows - 1) / kTileRows;
  for (std::size_t t = 0; t < count; ++t) {
    const std::size_t begin = args.length * t / count;
    const std::size_t end = args.length * (t + 1) / count;
    kAttentionTiles[end - begin - 1](args, keys, scores, begin, scale, added);
  }
}

}  // namespace
