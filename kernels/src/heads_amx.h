// What attention multiplies, in bfloat16 and in tiles of AMX: two tiles of rows at one time, which
// share what is loaded of keys and values. A step of depth is a tile of sixteen words: 32 numbers
// of a head, with zeros behind the last, or 32 keys.
//
// All tiles are whole. Rows that a tile has and the sentence has not hold what their buffers held
// before: there is room for them, and no row sees another. Of the last step's keys, those that no
// row sees count as zero. Weights of zero change no sum, and steps begin every 32 keys, counted
// from the sentence's first: a row has the same bits whatever comes behind what it sees.
//
// A word of weights and values has keys that are sixteen apart: it is then one instruction to put
// the upper halves of two vectors of floats together.
#pragma once

#include "amx_tile.h"
#include "heads_bfloat16.h"
#include "kernels.h"
#include "tile.h"

namespace {

struct TileHeads : BfloatHeads {
  static constexpr std::size_t kRowUnit = kTileHeight, kWindowRows = kTileHeight;
  static constexpr std::size_t kRows = 2 * kTileHeight;
  static constexpr std::size_t kKeyStep = 2 * kTileHeight;
  static constexpr std::size_t kGroupRows = 2048;  // queries and contexts stay in L2 beside a block

  // A thread's tiles as long as a call lasts.
  class Unit {
   public:
    Unit() {
      TileConfig shapes;
      for (int t = 0; t < 8; ++t) {
        shapes.rows[t] = kTileHeight;
        shapes.row_bytes[t] = kTileRowBytes;
      }
      tile_configure(shapes);
    }
    ~Unit() { tile_release(); }
    Unit(const Unit&) = delete;
    Unit& operator=(const Unit&) = delete;
  };

  static std::size_t words(std::size_t head_size) {
    return (head_size + kKeyStep - 1) / kKeyStep * kTileHeight;
  }

  // Floats of scratch: for so many rows, and for the values of a block of `keys` and once more of
  // its last step.
  static std::size_t query_room(std::size_t rows, std::size_t head_size) {
    return (rows + kRows) * words(head_size);
  }
  static std::size_t value_room(std::size_t keys, std::size_t head_size) {
    return (keys + kKeyStep) / kWord * head_size;
  }

  static Panel queries(const Element* q, std::size_t ld, std::size_t rows, std::size_t head_size,
                       float* room) {
    const std::size_t width = words(head_size);
    for (std::size_t r = 0; r < rows; ++r, q += ld) {
      for (std::size_t word = 0; word < width; word += Vec::kLanes) {
        key_words(q, word * kWord, head_size).store(room + r * width + word);
      }
    }
    return {reinterpret_cast<const char*>(room), width * sizeof *room};
  }

  static void scores(Panel q, std::size_t rows, const float* panels, std::size_t words,
                     std::size_t, std::size_t stop, float* out, std::size_t stride) {
    const std::size_t steps = words / kTileHeight;
    for (std::size_t key = 0; key < stop; key += kKeyStep) {
      const Panel all{reinterpret_cast<const char*>(panels + key * words), 2 * kTileRowBytes};
      multiply<2>(q, rows, all, last_of(all, steps), steps, {out + key, stride});
    }
  }

  // As BfloatHeads packs them, but in whole steps and in words of keys that are sixteen apart.
  static void pack_values(const Element* v, std::size_t ld, std::size_t length,
                          std::size_t head_size, float* to) {
    const std::size_t pairs = padded_pairs(length);
    for (std::size_t pair = 0; pair < pairs; ++pair) {
      const std::size_t first = pair / kTileHeight * kKeyStep + pair % kTileHeight;
      const std::size_t second = first + kTileHeight;
      for (std::size_t d = 0; d < head_size; d += Vec::kLanes) {
        in_words(first < length ? v + first * ld + d : nullptr,
                 second < length ? v + second * ld + d : nullptr)
            .store(to + place_of(pair, d, pairs, head_size));
      }
    }
  }

  struct Values : BfloatHeads::Values {
    float* last_step;  // room for one
    std::size_t keys;
  };

  static Values values(const Element*, std::size_t, float* packed, std::size_t keys,
                       std::size_t head_size) {
    const std::size_t pairs = padded_pairs(keys);
    return {{packed, pairs, head_size}, packed + pairs * head_size, keys};
  }

  static void context(const float* weights, std::size_t stride, std::size_t rows,
                      const Values& values, std::size_t skipped, std::size_t count, float* out) {
    const Panel a{reinterpret_cast<const char*>(weights), stride * sizeof *weights};
    const std::size_t steps = padded_pairs(count) / kTileHeight;
    const bool cut = count % kKeyStep != 0 && skipped + count < values.keys;
    std::size_t width;
    for (std::size_t d = 0; d < values.head_size; d += width) {
      width = panel_width(d, values.head_size);
      const Panel all = values.panel(skipped, d);
      Panel last = last_of(all, steps);
      if (cut) last = seen_only(last, width, count % kKeyStep, values.last_step);
      const Sums to{out + d, values.head_size};
      width == kKeyStep ? multiply<2>(a, rows, all, last, steps, to)
                        : multiply<1>(a, rows, all, last, steps, to);
    }
  }

  // Rounded to nearest, ties away from zero.
  static float weigh(float* scores, std::size_t length, float most, float scale) {
    const auto words = [](Vec low, Vec high) {
      return upper_halves(power_of_two(low, kHalfDigit), power_of_two(high, kHalfDigit));
    };
    return weigh_in(words, scores, length, most, scale);
  }

  static void clear_weights(float* weights, std::size_t begin, std::size_t end) {
    auto* halves = reinterpret_cast<std::uint16_t*>(weights);
    for (std::size_t key = begin; key < end; ++key) {
      const std::size_t within = key % kKeyStep;
      halves[key - within + within % kTileHeight * kWord + within / kTileHeight] = 0;
    }
  }

 private:
  // Half of the last of the eight digits of a bfloat16 from 1 to 2.
  static constexpr float kHalfDigit = 0x1p-8f;

  struct Sums {
    float* at;
    std::size_t stride;  // floats
  };

  static std::size_t padded_pairs(std::size_t keys) {
    return (keys + kKeyStep - 1) / kKeyStep * kTileHeight;
  }

  // A step of values with zeros instead of all but its first keys.
  static Panel seen_only(Panel step, std::size_t width, std::size_t keys, float* to) {
    for (std::size_t pair = 0; pair < kTileHeight; ++pair) {
      const std::uint32_t low = pair < keys ? 0xffff : 0;
      const std::uint32_t high = pair + kTileHeight < keys ? 0xffff0000 : 0;
      const __m512i seen = _mm512_set1_epi32(static_cast<int>(low | high));
      for (std::size_t d = 0; d < width; d += Vec::kLanes) {
        const char* from = step.at + pair * step.stride + d * sizeof(float);
        _mm512_storeu_si512(to + pair * width + d,
                            _mm512_and_si512(_mm512_loadu_si512(from), seen));
      }
    }
    return {reinterpret_cast<const char*>(to), step.stride};
  }

  // Bfloat16 of both, one of `low`, one of `high`, and so on, by leaving the lower halves away.
  static Vec upper_halves(Vec low, Vec high) {
    const __m512i below = _mm512_srli_epi32(_mm512_castps_si512(low.v), 16);
    return {_mm512_castsi512_ps(
        _mm512_mask_blend_epi16(0xaaaaaaaa, below, _mm512_castps_si512(high.v)))};
  }

  static Panel last_of(Panel panel, std::size_t steps) {
    return {panel.at + (steps - 1) * kTileHeight * panel.stride, panel.stride};
  }

  template <int C>
  static void multiply(Panel a, std::size_t rows, Panel b, Panel last, std::size_t steps,
                       Sums out) {
    rows > kTileHeight ? multiply<2, C>(a, b, last, steps, out)
                       : multiply<1, C>(a, b, last, steps, out);
  }

  // Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns. `last` are those of the last step.
  template <int R, int C>
  static void multiply(Panel a, Panel b, Panel last, std::size_t steps, Sums out) {
    const std::size_t below = kTileHeight * a.stride;
    tile_zero<0>();
    if constexpr (C == 2) tile_zero<1>();
    if constexpr (R == 2) tile_zero<2>();
    if constexpr (R == 2 && C == 2) tile_zero<3>();
    for (; steps != 0; --steps) {
      if (steps == 1) b = last;
      tile_load<6>(b.at, b.stride);
      tile_load<4>(a.at, a.stride);
      tile_dot<0, 4, 6>();
      if constexpr (C == 2) {
        tile_load<7>(b.at + kTileRowBytes, b.stride);
        tile_dot<1, 4, 7>();
      }
      if constexpr (R == 2) {
        tile_load<5>(a.at + below, a.stride);
        tile_dot<2, 5, 6>();
        if constexpr (C == 2) tile_dot<3, 5, 7>();
      }
      a.at += kTileRowBytes;
      b.at += kTileHeight * b.stride;
    }
    const std::size_t stride = out.stride * sizeof *out.at;
    float* const second = out.at + kTileHeight * out.stride;
    tile_store<0>(out.at, stride);
    if constexpr (C == 2) tile_store<1>(out.at + kTileHeight, stride);
    if constexpr (R == 2) tile_store<2>(second, stride);
    if constexpr (R == 2 && C == 2) tile_store<3>(second + kTileHeight, stride);
  }
};

}  // namespace
