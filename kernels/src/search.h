// The best rows of a corpus for each query: dot products or Hamming distances, and a heap of k for
// each query. No matrix of scores is ever held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "search_kernels.h"

namespace kosine {

struct Search {
  Rows kind;
  const void* corpus;    // (count, width), rows without a gap
  std::size_t count;
  std::size_t width;     // elements or bytes of a row
  std::size_t depth;     // columns of a row as floats
  const float* shift;    // (depth,), for bytes
  const float* scale;
  bool normalise;        // divide a row's scores by its length; those of a zero row are 0
  const void* queries;   // (num_queries, depth) floats; bits where distances are sought
  std::size_t num_queries;
  std::size_t k;         // 1 to count
  int threads;
  std::int64_t* indices; // (num_queries, k), best first; ties go to the lower index, NaN comes last
  float* scores;         // (num_queries, k)

  std::size_t row_bytes() const { return kind == Rows::kFloats ? width * sizeof(float) : width; }
};

// `level` is an ISA level that is not exceeded, or empty. Throws Unavailable, std::bad_alloc.
void find_products(const Search& search, const std::string& level);

// The least Hamming distances, of rows and queries of bits; `scores` are negated distances.
void find_distances(const Search& search, const std::string& level);

}  // namespace kosine
