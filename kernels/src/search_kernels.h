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

// Scores of rows with the queries of one panel (or up to kFewQueries one by one). `passed` has a
// bit for each query whose score is not at most `least`: also where either is NaN.
struct ScoreArgs {
  const float* rows;     // (count, depth), rows ld apart
  std::size_t ld;
  std::size_t count;
  std::size_t depth;
  const float* queries;  // panel: (depth, panel) floats; few: (few, depth)
  std::size_t in;        // how many queries
  const float* factor;   // (count,): what a row's scores are multiplied by
  const float* least;    // (kMaxPanel,)
  float* scores;         // (count, kMaxPanel)
  std::uint32_t* passed; // (count,)
};

constexpr std::size_t kMaxPanel = 32;    // queries that are scored together
constexpr std::size_t kFewQueries = 8;   // up to so many are faster without a panel

// One table for each ISA level that has one.
struct SearchKernels {
  Isa isa;
  std::size_t panel;  // queries in a panel
  void (*score_panel)(const ScoreArgs&);
  void (*score_few)(const ScoreArgs&);
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
