// Attention of one head of one sentence, over its own keys only: no mask and no padding tokens.
//
// Keys come in blocks of kKeyBlock, counted from the sentence's own start. A block is met by the
// tiles of a group of rows one after another, while it is in the L2 cache:
//
//   1. Its keys are transposed into panels of two vectors of keys, the layout of a packed
//      weight, zeros after the last key. What else the products need of q, k and v is up to
//      `Heads` (heads_float32.h, heads_bfloat16.h, heads_amx.h), which says what they multiply.
//   2. For each tile of query rows: scores = q kT, then weights exp(score - the highest so far) in
//      place, then context = weights v. What a row has from blocks before is multiplied by
//      exp(highest before - highest now), and the block's is added.
//   3. Where the last block of a tile is done, the context is divided by the sum of the weights.
//
// A sentence of one block has nothing from before, and is never multiplied. Where a row does not
// see all, a tile multiplies with the keys that one of its rows sees, from a whole panel on, and
// each row's weights are zero where it sees none.
//
// Where blocks, tiles and their rows begin follows from the sentence's length alone: who computes
// which of the tiles, and in which groups, changes no bit.
#pragma once

#include "kernels.h"
#include "rowwise.h"
#include "tile.h"

namespace {

// Part of the arithmetic: a sum over keys is one of sums over blocks. A tile's scores, 14 rows of
// it, are 28 KiB and stay in the L1 cache; its keys and values stay in L2: 256 KiB for heads of 64
// in floats.
constexpr std::size_t kKeyBlock = 512;
constexpr std::size_t kGroupTiles = Heads::kGroupRows / kTileRows;

inline std::size_t padded_keys(std::size_t length) {
  return (length + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
}

// The rows of a sentence, tile by tile, as even as they can be.
struct QueryTiles {
  std::size_t length;

  std::size_t count() const { return (length + kTileRows - 1) / kTileRows; }
  std::size_t begin(std::size_t tile) const { return length * tile / count(); }
};

// The buffers of a call.
struct AttentionRoom {
  explicit AttentionRoom(std::size_t length)
      : keys(padded_keys(length < kKeyBlock ? length : kKeyBlock)),
        blocks((length + kKeyBlock - 1) / kKeyBlock),
        tiles(QueryTiles{length}.count()),
        group(blocks == 1 || tiles < kGroupTiles ? tiles : kGroupTiles) {}

  std::size_t keys;    // of a block
  std::size_t blocks;
  std::size_t tiles;
  std::size_t group;   // tiles that meet a block one after another

  // One cache line more than the keys, so that the rows of a tile do not fall into the same sets.
  std::size_t scores_stride() const { return keys + kLine / sizeof(float); }
  std::size_t scores() const { return kTileRows * scores_stride(); }
  std::size_t panels(std::size_t head_size) const { return head_size / Heads::kWord * keys; }
  std::size_t distances() const { return group * kTileRows + keys + Vec::kLanes; }
  // What a tile keeps between blocks: contexts, the highest scores, the sums of weights.
  std::size_t kept(std::size_t head_size) const {
    return blocks == 1 ? 0 : kTileRows * (head_size + 2);
  }
};

std::size_t attention_scratch(std::size_t length, std::size_t head_size) {
  const AttentionRoom room(length);
  return room.panels(head_size) + Heads::value_room(room.keys, head_size) + room.scores() +
         Heads::query_room(head_size) + room.distances() + room.group * room.kept(head_size);
}

// keys (length, head_size) -> for each pair of key vectors a panel (words of a head, 2 vectors);
// the last panel is one vector wide where the number of key vectors is odd.
inline void transpose_keys(const float* k, std::size_t ld, std::size_t length,
                           std::size_t head_size, float* to) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const std::size_t padded = padded_keys(length), words = head_size / Heads::kWord;
  for (std::size_t first = 0; first < padded; first += kLanes) {
    const std::size_t panel = first / (2 * kLanes) * (2 * kLanes);
    const std::size_t width = padded - panel < 2 * kLanes ? kLanes : 2 * kLanes;
    float* column = to + panel * words + (first - panel);
    for (std::size_t word = 0; word < words; word += kLanes) {
      Vec block[kLanes];
      for (std::size_t i = 0; i < kLanes; ++i) {
        block[i] = first + i < length
                       ? Heads::key_words(k + (first + i) * ld, word * Heads::kWord, head_size)
                       : Vec::zero();
      }
      transpose(block);
      const std::size_t count = words - word < kLanes ? words - word : kLanes;
      for (std::size_t i = 0; i < count; ++i) block[i].store(column + (word + i) * width);
    }
  }
}

// What the rows of a tile keep between blocks.
struct Kept {
  float* context;  // (rows, head_size)
  float* highest;  // of the scores so far
  float* total;    // of the weights so far
};

// What becomes of a row's context in a block.
struct Turnover {
  Vec before;   // factor of what was there
  Vec inverse;  // 1 / the sum of the weights, after the last block
};

// Scores become weights exp((score - highest) * scale); zero after the last key. `highest` and
// `total` are those of the keys before, and of all then. Gives the factor of what was there.
inline float softmax_row(float* scores, std::size_t length, float scale, float& highest,
                         float& total) {
  constexpr std::size_t kLanes = Vec::kLanes;
  constexpr std::size_t kChains = 4;
  const std::size_t whole = length / kLanes * kLanes;
  Vec tops[kChains];
  for (Vec& top : tops) top = Vec::all(-__builtin_inff());
  std::size_t i = 0;
  for (; i + kChains * kLanes <= whole; i += kChains * kLanes) {
#pragma GCC unroll 4
    for (std::size_t j = 0; j < kChains; ++j) {
      tops[j] = max(tops[j], Vec::load(scores + i + j * kLanes));
    }
  }
  for (; i < whole; i += kLanes) tops[0] = max(tops[0], Vec::load(scores + i));
  if (i < length) tops[0] = max(tops[0], keep(Vec::load(scores + i), length - i, tops[0]));
  const float top = largest(max(max(tops[0], tops[1]), max(tops[2], tops[3])));
  const float before = highest;
  if (!(before > top)) highest = top;
  const float sums = Heads::weigh(scores, length, highest, scale);
  if (total == 0.0f) {  // nothing came before
    total = sums;
    return 0.0f;
  }
  float change[kLanes];
  Heads::exp(Vec::all((before - highest) * scale)).store(change);
  total = __builtin_fmaf(total, change[0], sums);
  return change[0];
}

// A run of keys.
struct Keys {
  std::size_t begin;
  std::size_t end;
};

// Those of `length` keys that the rows begin .. end see: from a whole panel on.
inline Keys keys_of(const kosine::AttentionArgs& args, std::size_t begin, std::size_t end) {
  constexpr std::size_t kPair = 2 * Vec::kLanes;
  const std::size_t first = begin > args.behind ? begin - args.behind : 0;
  return {first / kPair * kPair, args.length - end > args.ahead ? end + args.ahead : args.length};
}

inline Keys both(Keys a, Keys b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

// softmax_row over the keys that one row sees, out of the `seen` ones of its tile, whose scores
// these are; zero for the others.
inline float softmax_window(const kosine::AttentionArgs& args, float* scores, Keys seen,
                            std::size_t row, float scale, float& highest, float& total) {
  const std::size_t begin = row > args.behind ? row - args.behind : 0;
  const std::size_t end = args.length - row > args.ahead ? row + args.ahead + 1 : args.length;
  const Keys own = both(seen, {begin, end});
  float factor = 1.0f;
  std::size_t i = seen.begin;
  if (own.begin < own.end) {
    for (; i < own.begin; ++i) scores[i - seen.begin] = -__builtin_inff();
    factor = softmax_row(scores, own.end - seen.begin, scale, highest, total);
    Heads::clear_weights(scores, 0, own.begin - seen.begin);
    i = own.end;
  }
  const std::size_t words = (seen.end - seen.begin + Heads::kWord - 1) / Heads::kWord;
  Heads::clear_weights(scores, i - seen.begin, words * Heads::kWord);
  return factor;
}

// What distances from `first` on add, one number for each, so that a row reads its own in one go.
inline void spread_distances(const kosine::AttentionArgs& args, std::ptrdiff_t first,
                             std::size_t count, float* to) {
  const auto reach = static_cast<std::ptrdiff_t>(args.reach);
  for (std::size_t i = 0; i < count; ++i) {
    const std::ptrdiff_t distance = first + static_cast<std::ptrdiff_t>(i);
    const std::ptrdiff_t reached = distance < -reach ? -reach : distance > reach ? reach : distance;
    to[i] = args.distances[reach + reached];
  }
}

// A block of keys in the buffers of a call.
struct KeyBlock {
  Heads::Unit& unit;
  Keys keys;            // those that are packed, from a whole panel on
  const float* panels;
  const float* values;  // as `Heads` packs them
  float* queries;       // room for those of a tile
  float* scores;        // (kTileRows, keys)
  std::size_t stride;   // of scores
  // What distances add: at [i] for the key `i` after the first, seen from row `last_row`; from the
  // row before that, one further on. Null where they add nothing.
  const float* added;
  std::size_t last_row;
};

template <int R>
void attention_rows(const kosine::AttentionArgs& args, const KeyBlock& block, std::size_t row,
                    float scale, const Kept& kept) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const Keys all = keys_of(args, row, row + R);
  const Keys seen = both(all, block.keys);
  if (seen.begin >= seen.end) return;
  const bool first = seen.begin == all.begin, last = seen.end == all.end;
  const std::size_t stride = block.stride;
  const std::size_t count = seen.end - seen.begin, skipped = seen.begin - block.keys.begin;
  const std::size_t steps = (count + Heads::kWord - 1) / Heads::kWord;
  block.unit.prepare(steps);
  const Panel q =
      Heads::queries(args.q + row * args.ld, args.ld, R, args.head_size, block.queries);
  const std::size_t words = args.head_size / Heads::kWord;
  // Panels are two vectors wide, but for the block's last one.
  const std::size_t padded = padded_keys(block.keys.end - seen.begin);
  const std::size_t stop = padded_keys(count);
  const float* panels = block.panels + skipped * words;
  float* const scores = block.scores;
  std::size_t key = 0;
  for (; key + 2 * kLanes <= padded && key < stop; key += 2 * kLanes) {
    Vec acc[R][2];
    const auto* panel = reinterpret_cast<const char*>(panels + key * words);
    Heads::scores(acc, q.at, q.stride, {panel, 2 * sizeof(Vec)}, words);
    for (int r = 0; r < R; ++r) {
      acc[r][0].store(scores + r * stride + key);
      acc[r][1].store(scores + r * stride + key + kLanes);
    }
  }
  if (key < stop) {
    Vec acc[R][1];
    const auto* panel = reinterpret_cast<const char*>(panels + key * words);
    Heads::scores(acc, q.at, q.stride, {panel, sizeof(Vec)}, words);
    for (int r = 0; r < R; ++r) acc[r][0].store(scores + r * stride + key);
  }

  if (block.added != nullptr) {
    for (int r = 0; r < R; ++r) {
      const float* own = block.added + (block.last_row - row - r) + skipped;
      for (std::size_t i = 0; i < stop; i += kLanes) {
        float* score = scores + r * stride + i;
        (Vec::load(score) * Vec::all(scale) + Vec::load(own + i)).store(score);
      }
    }
    scale = 1.0f;
  }

  Turnover rows[R];
  for (int r = 0; r < R; ++r) {
    float highest = first ? -__builtin_inff() : kept.highest[r];
    float total = first ? 0.0f : kept.total[r];
    const float before =
        softmax_window(args, scores + r * stride, seen, row + r, scale, highest, total);
    rows[r] = {Vec::all(before), Vec::all(1.0f / total)};
    if (last) continue;
    kept.highest[r] = highest;
    kept.total[r] = total;
  }

  const char* weights = reinterpret_cast<const char*>(scores);
  const auto values = [&](std::size_t d) {
    return Heads::values(args.v + block.keys.begin * args.ld, args.ld, block.values,
                         block.keys.end - block.keys.begin, args.head_size, skipped, d);
  };
  auto* out = static_cast<Output::Activation*>(args.out) + row * args.ldo;
  const auto settle = [&](Vec context, int r, std::size_t d) {
    float* const so_far = kept.context + r * args.head_size + d;
    if (!first) context = fma(Vec::load(so_far), rows[r].before, context);
    if (last) {
      Output::store(context * rows[r].inverse, out + r * args.ldo + d);
    } else {
      context.store(so_far);
    }
  };
  std::size_t d = 0;
  for (; d + 2 * kLanes <= args.head_size; d += 2 * kLanes) {
    Vec acc[R][2];
    Heads::context(acc, weights, stride * sizeof(float), values(d), steps);
    for (int r = 0; r < R; ++r) {
      settle(acc[r][0], r, d);
      settle(acc[r][1], r, d + kLanes);
    }
  }
  if (d < args.head_size) {
    Vec acc[R][1];
    Heads::context(acc, weights, stride * sizeof(float), values(d), steps);
    for (int r = 0; r < R; ++r) settle(acc[r][0], r, d);
  }
}

using AttentionTile = void (*)(const kosine::AttentionArgs&, const KeyBlock&, std::size_t, float,
                               const Kept&);

constexpr AttentionTile kAttentionTiles[] = {
    attention_rows<1>,  attention_rows<2>,  attention_rows<3>,  attention_rows<4>,
    attention_rows<5>,  attention_rows<6>,
#if defined(__AVX512F__)
    attention_rows<7>,  attention_rows<8>,  attention_rows<9>,  attention_rows<10>,
    attention_rows<11>, attention_rows<12>, attention_rows<13>, attention_rows<14>,
#endif
};

// The tiles begin .. end, group by group.
inline void attend_tiles(const kosine::AttentionArgs& args, std::size_t begin, std::size_t end,
                         Heads::Unit& unit) {
  static_assert(sizeof kAttentionTiles == kTileRows * sizeof(AttentionTile));
  const AttentionRoom room(args.length);
  const QueryTiles tiles{args.length};
  const std::size_t kept_size = room.kept(args.head_size);
  float* const panels = args.scratch;
  float* const values = panels + room.panels(args.head_size);
  float* const scores = values + Heads::value_room(room.keys, args.head_size);
  float* const queries = scores + room.scores();
  float* const added = queries + Heads::query_room(args.head_size);
  float* const kept = added + room.distances();
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.head_size));
  for (std::size_t group = begin; group < end; group += room.group) {
    const std::size_t stop = end - group < room.group ? end : group + room.group;
    const std::size_t row = tiles.begin(group), end_row = tiles.begin(stop);
    const Keys seen = keys_of(args, row, end_row);
    for (std::size_t at = seen.begin / kKeyBlock * kKeyBlock; at < seen.end; at += kKeyBlock) {
      const Keys keys = both(seen, {at, at + kKeyBlock});
      transpose_keys(args.k + keys.begin * args.ld, args.ld, keys.end - keys.begin,
                     args.head_size, panels);
      Heads::pack_values(args.v + keys.begin * args.ld, args.ld, keys.end - keys.begin,
                         args.head_size, values);
      KeyBlock block{unit,   keys,   panels,  values,      queries,
                     scores, room.scores_stride(), nullptr, end_row - 1};
      if (args.distances != nullptr) {
        spread_distances(args, static_cast<std::ptrdiff_t>(keys.begin - block.last_row),
                         padded_keys(keys.end - keys.begin) + (end_row - row), added);
        block.added = added;
      }
      for (std::size_t t = group; t < stop; ++t) {
        const std::size_t rows = tiles.begin(t + 1) - tiles.begin(t);
        float* const context = kept + (t - group) * kept_size;
        float* const highest = context + kTileRows * args.head_size;
        kAttentionTiles[rows - 1](args, block, tiles.begin(t), scale,
                                  {context, highest, highest + kTileRows});
      }
    }
  }
}

// A part's tiles: a run from the front and one as long from the back, so that parts cost the same
// where a row sees what came before it only.
void attention(const kosine::AttentionArgs& args) {
  const std::size_t tiles = QueryTiles{args.length}.count();
  Heads::Unit unit;
  if (args.parts == 1) {
    attend_tiles(args, 0, tiles, unit);
    return;
  }
  const std::size_t runs = 2 * args.parts;
  const std::size_t front = args.part, back = runs - 1 - args.part;
  attend_tiles(args, tiles * front / runs, tiles * (front + 1) / runs, unit);
  attend_tiles(args, tiles * back / runs, tiles * (back + 1) / runs, unit);
}

}  // namespace
