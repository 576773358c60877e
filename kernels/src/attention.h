// Attention of one head of one sentence, over its own keys only: no mask and no padding tokens.
//
// Keys come in blocks of kKeyBlock, counted from the sentence's own start. A block is met by the
// tiles of a group of rows one after another, while it is in the L2 cache:
//
//   1. Its keys are transposed into panels of two vectors of keys, the layout of a packed
//      weight, zeros after the last key. What else the products need of q, k and v, and how many
//      rows and keys they take, is up to `Heads` (heads_float32.h, heads_bfloat16.h, heads_amx.h).
//   2. For each tile of query rows: scores = q kT, then weights exp(score - the highest so far) in
//      place, then context = weights v. What a row has from blocks before is multiplied by
//      exp(highest before - highest now), and the block's is added.
//   3. Where the last block of a tile is done, the context is divided by the sum of the weights.
//
// A sentence of one block has nothing from before, and is never multiplied. Where a row does not
// see all, a tile multiplies with the keys that one of its rows sees, from a whole panel on, and
// each row's weights are zero where it sees none.
//
// Where blocks, tiles and their rows begin follows from the sentence's length, and from whether its
// rows see all of it: who computes which of the tiles, and in which groups, changes no bit.
#pragma once

#include "kernels.h"
#include "rowwise.h"
#include "tile.h"

namespace {

constexpr std::size_t kKeyBlock = Heads::kKeyBlock;

inline std::size_t padded_keys(std::size_t length) {
  return (length + Heads::kKeyStep - 1) / Heads::kKeyStep * Heads::kKeyStep;
}

// The rows of a sentence, tile by tile, as even as they can be in units of kRowUnit. Where rows do
// not see all keys a tile has kWindowRows at most, so that few keys are multiplied in vain.
struct QueryTiles {
  QueryTiles(std::size_t rows, bool sees_all)
      : length(rows), units((rows + Heads::kRowUnit - 1) / Heads::kRowUnit),
        each(sees_all ? Heads::kRows / Heads::kRowUnit : Heads::kWindowRows / Heads::kRowUnit) {}

  std::size_t length;
  std::size_t units;
  std::size_t each;  // units of a tile, at most

  std::size_t count() const { return (units + each - 1) / each; }
  std::size_t of_group() const { return Heads::kGroupRows / (each * Heads::kRowUnit); }
  std::size_t begin(std::size_t tile) const {
    const std::size_t row = units * tile / count() * Heads::kRowUnit;
    return row < length ? row : length;
  }
};

// The buffers of a call.
struct AttentionRoom {
  explicit AttentionRoom(std::size_t length)
      : keys(padded_keys(length < kKeyBlock ? length : kKeyBlock)),
        blocks((length + kKeyBlock - 1) / kKeyBlock),
        group(blocks == 1 || length < Heads::kGroupRows ? length : Heads::kGroupRows) {}

  std::size_t keys;    // of a block
  std::size_t blocks;
  std::size_t group;   // rows whose tiles meet a block one after another

  // One cache line more than the keys, so that the rows of a tile do not fall into the same sets.
  std::size_t scores_stride() const { return keys + kLine / sizeof(float); }
  std::size_t scores() const { return Heads::kRows * scores_stride(); }
  std::size_t panels(std::size_t head_size) const { return Heads::words(head_size) * keys; }
  std::size_t contexts(std::size_t head_size) const { return Heads::kRows * head_size; }
  std::size_t distances() const { return group + keys + Vec::kLanes; }
  // The highest score and the sum of weights of a row, and its context between blocks.
  std::size_t kept(std::size_t head_size) const {
    return group * (blocks == 1 ? 2 : head_size + 2);
  }
};

std::size_t attention_scratch(std::size_t length, std::size_t head_size) {
  const AttentionRoom room(length);
  return room.panels(head_size) + Heads::value_room(room.keys, head_size) + room.scores() +
         Heads::query_room(room.group, head_size) + room.contexts(head_size) + room.distances() +
         room.kept(head_size);
}

// keys (length, head_size) -> for each pair of key vectors a panel (words of a head, 2 vectors);
// the last panel is one vector wide where the number of key vectors is odd.
inline void transpose_keys(const Heads::Element* k, std::size_t ld, std::size_t length,
                           std::size_t head_size, float* to) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const std::size_t padded = padded_keys(length), words = Heads::words(head_size);
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

// What rows keep between blocks.
struct Kept {
  float* context;  // (rows, head_size)
  float* highest;  // of the scores so far
  float* total;    // of the weights so far
};

// The highest of a row's scores; NaN where one is.
inline float highest_score(const float* scores, std::size_t length) {
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
  return largest(max(max(tops[0], tops[1]), max(tops[2], tops[3])));
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

// Those that one row sees.
inline Keys keys_of(const kosine::AttentionArgs& args, std::size_t row) {
  return {row > args.behind ? row - args.behind : 0,
          args.length - row > args.ahead ? row + args.ahead + 1 : args.length};
}

// Scores of the `seen` keys of a tile of rows become weights exp((score - highest) * scale), zero
// for those that a row does not see. `highest` and `total` of each row are those of the keys
// before, and of all then; `before` becomes the factor of what came of the keys before.
inline void softmax_rows(const kosine::AttentionArgs& args, float* scores, std::size_t stride,
                         Keys seen, std::size_t begin, std::size_t rows, float scale,
                         float* highest, float* total, float* before) {
  constexpr std::size_t kStep = Heads::kWeightStep;
  // Each of these loops has all rows, so that they do not wait for one another.
  float was[Heads::kRows], sums[Heads::kRows];
  for (std::size_t r = 0; r < rows; ++r) {
    float* const row = scores + r * stride;
    const Keys own = both(seen, keys_of(args, begin + r));
    was[r] = highest[r];
    if (own.begin >= own.end) continue;
    const std::size_t unseen = own.begin - seen.begin;
    for (std::size_t i = 0; i < unseen; ++i) row[i] = -__builtin_inff();
    const float top = highest_score(row, own.end - seen.begin);
    if (!(was[r] > top)) highest[r] = top;
  }
  for (std::size_t r = 0; r < rows; r += Vec::kLanes) {
    float changes[Vec::kLanes];
    const std::size_t count = rows - r < Vec::kLanes ? rows - r : Vec::kLanes;
    for (std::size_t i = 0; i < count; ++i) changes[i] = (was[r + i] - highest[r + i]) * scale;
    Heads::exp(Vec::load(changes)).store(changes);
    for (std::size_t i = 0; i < count; ++i) {
      before[r + i] = total[r + i] == 0.0f ? 0.0f : changes[i];  // nothing came before
    }
  }
  for (std::size_t r = 0; r < rows; ++r) {
    float* const row = scores + r * stride;
    const Keys own = both(seen, keys_of(args, begin + r));
    std::size_t done = 0;
    sums[r] = 0.0f;
    if (own.begin < own.end) {
      const std::size_t count = own.end - seen.begin;
      sums[r] = Heads::weigh(row, count, highest[r], scale);
      Heads::clear_weights(row, 0, own.begin - seen.begin);
      done = (count + kStep - 1) / kStep * kStep;
    }
    Heads::clear_weights(row, done, padded_keys(seen.end - seen.begin));
  }
  for (std::size_t r = 0; r < rows; ++r) total[r] = __builtin_fmaf(total[r], before[r], sums[r]);
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
  Keys keys;            // those that are packed, from a whole panel on
  const float* panels;
  float* values;        // as `Heads` packs them
  float* scores;        // (kRows, keys)
  std::size_t stride;   // of scores
  float* contexts;      // (kRows, head_size)
  // What distances add: at [i] for the key `i` after the first, seen from row `last_row`; from the
  // row before that, one further on. Null where they add nothing.
  const float* added;
  std::size_t last_row;
};

// From a row of q, k or v on.
inline const Heads::Element* rows_of(const void* x, const kosine::AttentionArgs& args,
                                     std::size_t row) {
  return static_cast<const Heads::Element*>(x) + row * args.ld;
}

// Rows begin .. end of the sentence, whose queries these are, meet a block.
inline void attend_rows(const kosine::AttentionArgs& args, const KeyBlock& block, Panel queries,
                        std::size_t begin, std::size_t end, float scale, const Kept& kept) {
  constexpr std::size_t kLanes = Vec::kLanes;
  const Keys all = keys_of(args, begin, end);
  const Keys seen = both(all, block.keys);
  if (seen.begin >= seen.end) return;
  const bool first = seen.begin == all.begin, last = seen.end == all.end;
  const std::size_t rows = end - begin, stride = block.stride;
  const std::size_t count = seen.end - seen.begin, skipped = seen.begin - block.keys.begin;
  const std::size_t stop = padded_keys(count), words = Heads::words(args.head_size);
  float* const scores = block.scores;
  Heads::scores(queries, rows, block.panels + skipped * words, words,
                padded_keys(block.keys.end - seen.begin), stop, scores, stride);

  if (block.added != nullptr) {
    for (std::size_t r = 0; r < rows; ++r) {
      const float* own = block.added + (block.last_row - begin - r) + skipped;
      for (std::size_t i = 0; i < stop; i += kLanes) {
        float* score = scores + r * stride + i;
        (Vec::load(score) * Vec::all(scale) + Vec::load(own + i)).store(score);
      }
    }
    scale = 1.0f;
  }

  for (std::size_t r = 0; first && r < rows; ++r) {
    kept.highest[r] = -__builtin_inff();
    kept.total[r] = 0.0f;
  }
  float before[Heads::kRows];
  softmax_rows(args, scores, stride, seen, begin, rows, scale, kept.highest, kept.total, before);

  Heads::context(scores, stride, rows,
                 Heads::values(rows_of(args.v, args, block.keys.begin), args.ld, block.values,
                               block.keys.end - block.keys.begin, args.head_size),
                 skipped, count, block.contexts);
  auto* out = static_cast<Output::Activation*>(args.out) + begin * args.ldo;
  for (std::size_t r = 0; r < rows; ++r) {
    const Vec factor = Vec::all(before[r]), inverse = Vec::all(1.0f / kept.total[r]);
    float* const so_far = kept.context + r * args.head_size;
    for (std::size_t d = 0; d < args.head_size; d += kLanes) {
      Vec context = Vec::load(block.contexts + r * args.head_size + d);
      if (!first) context = fma(Vec::load(so_far + d), factor, context);
      if (last) {
        Output::store(context * inverse, out + r * args.ldo + d);
      } else {
        context.store(so_far + d);
      }
    }
  }
}

// The tiles begin .. end, group by group.
inline void attend_tiles(const kosine::AttentionArgs& args, const QueryTiles& tiles,
                         std::size_t begin, std::size_t end) {
  const AttentionRoom room(args.length);
  float* const panels = args.scratch;
  float* const values = panels + room.panels(args.head_size);
  float* const scores = values + Heads::value_room(room.keys, args.head_size);
  float* const queries = scores + room.scores();
  float* const contexts = queries + Heads::query_room(room.group, args.head_size);
  float* const added = contexts + room.contexts(args.head_size);
  float* const highest = added + room.distances();
  float* const total = highest + room.group;
  float* const kept = total + room.group;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.head_size));
  const std::size_t of_group = room.blocks == 1 ? end - begin : tiles.of_group();
  for (std::size_t group = begin; group < end; group += of_group) {
    const std::size_t stop = end - group < of_group ? end : group + of_group;
    const std::size_t row = tiles.begin(group), end_row = tiles.begin(stop);
    const Keys seen = keys_of(args, row, end_row);
    const Panel q = Heads::queries(rows_of(args.q, args, row), args.ld, end_row - row,
                                   args.head_size, queries);
    for (std::size_t at = seen.begin / kKeyBlock * kKeyBlock; at < seen.end; at += kKeyBlock) {
      const Keys keys = both(seen, {at, at + kKeyBlock});
      transpose_keys(rows_of(args.k, args, keys.begin), args.ld, keys.end - keys.begin,
                     args.head_size, panels);
      Heads::pack_values(rows_of(args.v, args, keys.begin), args.ld, keys.end - keys.begin,
                         args.head_size, values);
      KeyBlock block{keys,   panels,   values, scores, room.scores_stride(), contexts,
                     nullptr, end_row - 1};
      if (args.distances != nullptr) {
        spread_distances(args, static_cast<std::ptrdiff_t>(keys.begin - block.last_row),
                         padded_keys(keys.end - keys.begin) + (end_row - row), added);
        block.added = added;
      }
      for (std::size_t t = group; t < stop; ++t) {
        const std::size_t first = tiles.begin(t), at_row = first - row;
        const Panel own{q.at + at_row * q.stride, q.stride};
        attend_rows(args, block, own, first, tiles.begin(t + 1), scale,
                    {kept + at_row * args.head_size, highest + at_row, total + at_row});
      }
    }
  }
}

// A part's tiles: a run from the front and one as long from the back, so that parts cost the same
// where a row sees what came before it only.
void attention(const kosine::AttentionArgs& args) {
  const bool sees_all = args.behind >= args.length && args.ahead >= args.length;
  const QueryTiles query_tiles(args.length, sees_all);
  const std::size_t tiles = query_tiles.count();
  [[maybe_unused]] const Heads::Unit unit;
  if (args.parts == 1) {
    attend_tiles(args, query_tiles, 0, tiles);
    return;
  }
  const std::size_t runs = 2 * args.parts;
  const std::size_t front = args.part, back = runs - 1 - args.part;
  attend_tiles(args, query_tiles, tiles * front / runs, tiles * (front + 1) / runs);
  attend_tiles(args, query_tiles, tiles * back / runs, tiles * (back + 1) / runs);
}

}  // namespace
