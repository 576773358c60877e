// Scores of rows with few queries, for the unit that has chosen its `Vec` and has `from_bytes`.
//
// What counts is how fast rows come from memory: one after the other as they lie there, since
// neighbours side by side would be several streams, which arrive at half the speed.
#pragma once

#include "search_kernels.h"

namespace {

// A row of the corpus as floats.
struct FloatRow {
  const float* x;

  static FloatRow of(const kosine::FewArgs& args, std::size_t row) {
    return {static_cast<const float*>(args.rows) + row * args.depth};
  }
  Vec vector(std::size_t i) const { return Vec::load(x + i); }
  float number(std::size_t i) const { return x[i]; }
};

template <class Byte>
struct ByteRow {
  const Byte* x;
  const float* shift;
  const float* scale;

  static ByteRow of(const kosine::FewArgs& args, std::size_t row) {
    return {static_cast<const Byte*>(args.rows) + row * args.depth, args.shift, args.scale};
  }
  Vec vector(std::size_t i) const {
    return fma(from_bytes(x + i), Vec::load(scale + i), Vec::load(shift + i));
  }
  float number(std::size_t i) const { return __builtin_fmaf(x[i], scale[i], shift[i]); }
};

// Each sum runs along the depth in as many lanes as `kChains` vectors have: four queries and the
// squares leave registers for no more.
constexpr std::size_t kChains = Vec::kLanes / 4;

// The products of a row with Q queries, and its squares, in the same order for every Q.
template <int Q, bool kSquares, class Row>
[[gnu::always_inline]] inline float multiply_row(Row row, const float* queries, std::size_t depth,
                                                 float* scores) {
  constexpr int kSums = Q + kSquares;
  Vec acc[kSums][kChains];
  for (auto& chains : acc) {
    for (Vec& chain : chains) chain = Vec::zero();
  }
  const auto add = [&](std::size_t chain, std::size_t i) {
    const Vec part = row.vector(i);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      acc[q][chain] = fma(part, Vec::load(queries + q * depth + i), acc[q][chain]);
    }
    if constexpr (kSquares) acc[Q][chain] = fma(part, part, acc[Q][chain]);
  };
  std::size_t i = 0;
  for (; i + kChains * Vec::kLanes <= depth; i += kChains * Vec::kLanes) {
#pragma GCC unroll 4
    for (std::size_t chain = 0; chain < kChains; ++chain) add(chain, i + chain * Vec::kLanes);
  }
  for (; i + Vec::kLanes <= depth; i += Vec::kLanes) add(0, i);
  float sums[kSums];
  for (int s = 0; s < kSums; ++s) {
    Vec total = acc[s][0];
#pragma GCC unroll 4
    for (std::size_t chain = 1; chain < kChains; ++chain) total = total + acc[s][chain];
    sums[s] = sum(total);
  }
  for (; i < depth; ++i) {
    const float x = row.number(i);
    for (int q = 0; q < Q; ++q) sums[q] += x * queries[q * depth + i];
    if constexpr (kSquares) sums[Q] += x * x;
  }
  for (int q = 0; q < Q; ++q) scores[q] = sums[q];
  return kSquares ? sums[Q] : 1;
}

template <class Row, bool kNormalise>
std::size_t score_few_rows(const kosine::FewArgs& args) {
  std::size_t passed = 0;
  for (std::size_t r = 0; r < args.count; ++r) {
    const Row row = Row::of(args, r);
    float* const scores = args.scores + passed * kosine::kFewQueries;
    std::size_t q = args.in < 4 ? 1 : 4;
    const float squares =
        q == 1 ? multiply_row<1, kNormalise>(row, args.queries, args.depth, scores)
               : multiply_row<4, kNormalise>(row, args.queries, args.depth, scores);
    for (; q + 4 <= args.in; q += 4) {
      multiply_row<4, false>(row, args.queries + q * args.depth, args.depth, scores + q);
    }
    for (; q < args.in; ++q) {
      multiply_row<1, false>(row, args.queries + q * args.depth, args.depth, scores + q);
    }
    float factor = 1;
    if constexpr (kNormalise) {
      if (!(squares > kosine::kLeastSquares && squares < kosine::kMostSquares)) {
        args.passed[passed++] = static_cast<std::uint32_t>(r) | kosine::kOddLength;
        continue;
      }
      factor = static_cast<float>(1.0 / __builtin_sqrt(squares));
    }
    bool any = false;
    for (std::size_t each = 0; each < args.in; ++each) {
      scores[each] *= factor;
      any |= !(scores[each] <= args.least[each]);
    }
    if (any) args.passed[passed++] = static_cast<std::uint32_t>(r);
  }
  return passed;
}

template <class Row>
std::size_t score_few(const kosine::FewArgs& args) {
  return args.normalise ? score_few_rows<Row, true>(args) : score_few_rows<Row, false>(args);
}

}  // namespace
