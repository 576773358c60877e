// The interface of an ISA level to search.cpp: one table of functions per translation unit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace kosine {

// What the rows of a corpus hold, and so how one becomes floats.
enum class Rows {
  kFloats,
  kBytes,        // x = shift + byte * scale, column by column
  kSignedBytes,  // the same of signed bytes
  kBits,         // eight columns to a byte, the highest bit first: 1 is +1, 0 is -1
};

// Scores of rows with the queries of one panel. `passed` has a bit for each query whose score is
// not at most `least`: also where either is NaN.
struct ScoreArgs {
  const float* rows;     // (count, depth), rows ld apart
  std::size_t ld;
  std::size_t count;
  std::size_t depth;
  const float* queries;  // (depth, panel)
  std::size_t in;        // how many queries
  const float* factor;   // (count,): what a row's scores are multiplied by
  const float* least;    // (kMaxPanel,)
  float* scores;         // (count, kMaxPanel)
  std::uint32_t* passed; // (count,)
};

// Scores of rows, as they lie in the corpus, with few queries: each row is read once, for all sums
// and for its length.
struct FewArgs {
  const void* rows;        // (count, depth) of floats or bytes
  std::size_t count;
  std::size_t depth;
  const float* shift;      // (depth,), for bytes
  const float* scale;
  bool normalise;
  const float* queries;    // (in, depth)
  std::size_t in;          // 1 to kFewQueries
  const float* least;      // (in,)
  std::uint32_t* passed;   // (count,): rows that have a score that is not at most its `least`
  float* scores;           // (count, kFewQueries), of those rows
};

constexpr std::size_t kMaxPanel = 32;    // queries that are scored together
constexpr std::size_t kFewQueries = 8;   // up to so many are faster without a panel
constexpr std::uint32_t kOddLength = 1u << 31;  // in `passed`, with a row that has no scores yet

// Between these are squares of a length that floats can be divided by: others, and products with
// such rows, may have overflowed or vanished.
constexpr float kLeastSquares = 1e-30f, kMostSquares = 1e30f;

// One table for each ISA level that has one.
struct SearchKernels {
  Isa isa;
  std::size_t panel;  // queries in a panel
  void (*score_panel)(const ScoreArgs&);
  // How many rows have passed. Of floats, bytes and signed bytes.
  std::size_t (*score_floats)(const FewArgs&);
  std::size_t (*score_bytes)(const FewArgs&);
  std::size_t (*score_signed_bytes)(const FewArgs&);
  float (*squares)(const float* row, std::size_t depth);  // their sum
  void (*widen)(Rows kind, const void* row, std::size_t depth, const float* shift,
                const float* scale, float* out);
  // (count,) bits that differ between a query and rows `width` bytes long.
  void (*distances)(const std::uint8_t* rows, std::size_t width, std::size_t count,
                    const std::uint8_t* query, std::int32_t* out);
};

extern const SearchKernels kAvx2Search;
extern const SearchKernels kAvx512Search;

}  // namespace kosine
