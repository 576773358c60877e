// The best rows that a search has found so far.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

namespace kosine {

struct Found {
  float score;
  std::int64_t index;
};

// The order of results.
inline bool before(const Found& a, const Found& b) {
  if (a.score > b.score) return true;
  if (a.score < b.score) return false;
  const bool none_a = std::isnan(a.score), none_b = std::isnan(b.score);
  return none_a != none_b ? none_b : a.index < b.index;
}

// The k best so far of one thread for each query, the worst of them in front.
class Heaps {
 public:
  Heaps(std::size_t queries, std::size_t k)
      : k_(k), found_(new Found[queries * k]), sizes_(queries),
        least_(queries, std::numeric_limits<float>::quiet_NaN()) {}

  // Rows come by rising index, so an equal score is never better.
  void offer(std::size_t query, Found found) {
    Found* const heap = found_.get() + query * k_;
    std::size_t& size = sizes_[query];
    if (size < k_) {
      heap[size++] = found;
      std::push_heap(heap, heap + size, before);
    } else if (before(found, heap[0])) {
      std::pop_heap(heap, heap + k_, before);
      heap[k_ - 1] = found;
      std::push_heap(heap, heap + k_, before);
    } else {
      return;
    }
    if (size == k_) least_[query] = heap[0].score;
  }

  // What a score has to exceed; NaN as long as any will do.
  float least(std::size_t query) const { return least_[query]; }

  const Found* begin(std::size_t query) const { return found_.get() + query * k_; }
  const Found* end(std::size_t query) const { return begin(query) + sizes_[query]; }

 private:
  std::size_t k_;
  std::unique_ptr<Found[]> found_;
  std::vector<std::size_t> sizes_;
  std::vector<float> least_;
};

}  // namespace kosine
