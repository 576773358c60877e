// Scores of rows, for the unit that has chosen its `Vec` and has `beyond` and `from_bytes`.
#pragma once

#include "dot_float32.h"
#include "search_few.h"
#include "search_kernels.h"
#include "tile.h"

namespace {

constexpr std::size_t kQueries = 2 * Vec::kLanes;  // of a panel

// C vectors of the panel: one where it holds no more queries. Sums are the same either way.
template <int R, int C>
void score_tile(const kosine::ScoreArgs& args, std::size_t row) {
  Vec acc[R][C];
  multiply<FloatDot, R, C, false>(acc, reinterpret_cast<const char*>(args.rows + row * args.ld),
                                  args.ld * sizeof(float),
                                  {reinterpret_cast<const char*>(args.queries), 2 * sizeof(Vec)},
                                  args.depth, {nullptr, 0});
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec factor = Vec::all(args.factor[row + r]);
    float* const scores = args.scores + (row + r) * kosine::kMaxPanel;
    std::uint32_t passed = 0;
#pragma GCC unroll 2
    for (int c = 0; c < C; ++c) {
      const Vec score = acc[r][c] * factor;
      score.store(scores + c * Vec::kLanes);
      passed |= beyond(score, Vec::load(args.least + c * Vec::kLanes)) << (c * Vec::kLanes);
    }
    args.passed[row + r] = passed;
  }
}

template <int R, int C>
void score_rows(const kosine::ScoreArgs& args, std::size_t row, std::size_t count) {
  if (count == R) return score_tile<R, C>(args, row);
  if constexpr (R > 1) score_rows<R - 1, C>(args, row, count);
}

template <int C>
void score_tiles(const kosine::ScoreArgs& args) {
  std::size_t row = 0;
  for (; row + kTileRows <= args.count; row += kTileRows) score_tile<kTileRows, C>(args, row);
  if (row < args.count) score_rows<kTileRows - 1, C>(args, row, args.count - row);
}

void score_panel(const kosine::ScoreArgs& args) {
  args.in <= Vec::kLanes ? score_tiles<1>(args) : score_tiles<2>(args);
}

float squares(const float* row, std::size_t depth) {
  Vec acc[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  std::size_t i = 0;
  for (; i + 4 * Vec::kLanes <= depth; i += 4 * Vec::kLanes) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const Vec part = Vec::load(row + i + c * Vec::kLanes);
      acc[c] = fma(part, part, acc[c]);
    }
  }
  float total = sum((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; i < depth; ++i) total += row[i] * row[i];
  return total;
}

template <class Byte>
void widen_bytes(const Byte* row, std::size_t depth, const float* shift, const float* scale,
                 float* out) {
  std::size_t i = 0;
  for (; i + Vec::kLanes <= depth; i += Vec::kLanes) {
    fma(from_bytes(row + i), Vec::load(scale + i), Vec::load(shift + i)).store(out + i);
  }
  for (; i < depth; ++i) out[i] = __builtin_fmaf(row[i], scale[i], shift[i]);
}

void widen(kosine::Rows kind, const void* row, std::size_t depth, const float* shift,
           const float* scale, float* out) {
  const auto* bytes = static_cast<const std::uint8_t*>(row);
  if (kind == kosine::Rows::kBytes) return widen_bytes(bytes, depth, shift, scale, out);
  if (kind == kosine::Rows::kSignedBytes) {
    return widen_bytes(static_cast<const std::int8_t*>(row), depth, shift, scale, out);
  }
  for (std::size_t i = 0; i < depth; ++i) {
    out[i] = static_cast<float>(bytes[i / 8] >> (7 - i % 8) & 1) * 2 - 1;
  }
}

void distances(const std::uint8_t* rows, std::size_t width, std::size_t count,
               const std::uint8_t* query, std::int32_t* out) {
  for (std::size_t row = 0; row < count; ++row) {
    const std::uint8_t* const x = rows + row * width;
    std::int32_t differ = 0;
    std::size_t i = 0;
    for (; i + 8 <= width; i += 8) {
      std::uint64_t a, b;
      __builtin_memcpy(&a, x + i, sizeof a);
      __builtin_memcpy(&b, query + i, sizeof b);
      differ += __builtin_popcountll(a ^ b);
    }
    for (; i < width; ++i) differ += __builtin_popcount(static_cast<unsigned>(x[i] ^ query[i]));
    out[row] = differ;
  }
}

constexpr kosine::SearchKernels search_table(kosine::Isa isa) {
  static_assert(kQueries <= kosine::kMaxPanel);
  return {isa,
          kQueries,
          score_panel,
          score_few<FloatRow>,
          score_few<ByteRow<std::uint8_t>>,
          score_few<ByteRow<std::int8_t>>,
          squares,
          widen,
          distances};
}

}  // namespace
