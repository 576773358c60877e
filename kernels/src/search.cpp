#include "search.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu.h"
#include "search_heaps.h"

namespace kosine {
namespace {

constexpr std::size_t kBlockBytes = std::size_t{1} << 17;  // of rows as floats: half an L2 cache

const SearchKernels& kernels_for(const std::string& level) {
  const Isa isa = select_kernels(Dtype::kFloat32, level).isa;
  return isa == Isa::kAvx2 ? kAvx2Search : kAvx512Search;
}

// Queries in panels, as the kernels read them.
class Queries {
 public:
  Queries(const Search& search, const SearchKernels& kernels)
      : count_(search.num_queries), depth_(search.depth), panel_(kernels.panel) {
    const auto* const from = static_cast<const float*>(search.queries);
    packed_.resize(panels() * panel_ * depth_);
    for (std::size_t q = 0; q < count_; ++q) {
      float* const to = packed_.data() + q / panel_ * panel_ * depth_ + q % panel_;
      for (std::size_t i = 0; i < depth_; ++i) to[i * panel_] = from[q * depth_ + i];
    }
  }

  std::size_t panels() const { return (count_ + panel_ - 1) / panel_; }
  std::size_t first(std::size_t panel) const { return panel * panel_; }
  std::size_t in(std::size_t panel) const { return std::min(panel_, count_ - first(panel)); }
  const float* at(std::size_t panel) const { return packed_.data() + panel * panel_ * depth_; }

 private:
  std::size_t count_, depth_, panel_;
  std::vector<float> packed_;
};

const char* row_at(const Search& search, std::size_t row) {
  return static_cast<const char*>(search.corpus) + row * search.row_bytes();
}

// A copy of rows of any kind as floats.
void copy_floats(const Search& search, const SearchKernels& kernels, std::size_t begin,
                 std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) {
    const char* const row = row_at(search, begin + i);
    float* const to = out + i * search.depth;
    if (search.kind == Rows::kFloats) {
      std::memcpy(to, row, search.depth * sizeof(float));
    } else {
      kernels.widen(search.kind, row, search.depth, search.shift, search.scale, to);
    }
  }
}

// Gives a row the length 1 that floats cannot divide by.
void divide_by_length(float* x, std::size_t depth) {
  double sum = 0;
  for (std::size_t i = 0; i < depth; ++i) sum += static_cast<double>(x[i]) * x[i];
  const double length = sum == 0 ? 1 : std::sqrt(sum);
  for (std::size_t i = 0; i < depth; ++i) x[i] = static_cast<float>(x[i] / length);
}

// A block of the corpus as floats, where they lie or in a buffer, and what their scores are
// multiplied by.
class Block {
 public:
  Block(const Search& search, const SearchKernels& kernels, std::size_t rows)
      : search_(search),
        kernels_(kernels),
        buffer_(new float[rows * search.depth]),
        factors_(rows, 1.0f) {}

  void read(std::size_t begin, std::size_t count) {
    rows_ = buffer_.get();
    if (search_.kind == Rows::kFloats) {
      rows_ = reinterpret_cast<const float*>(row_at(search_, begin));
    } else {
      copy_floats(search_, kernels_, begin, count, buffer_.get());
    }
    for (std::size_t i = 0; search_.normalise && i < count; ++i) measure(i, count);
  }

  const float* rows() const { return rows_; }
  const float* factors() const { return factors_.data(); }

 private:
  void measure(std::size_t row, std::size_t count) {
    const float squares = kernels_.squares(rows_ + row * search_.depth, search_.depth);
    if (squares > kLeastSquares && squares < kMostSquares) {
      factors_[row] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(squares)));
      return;
    }
    if (rows_ != buffer_.get()) {
      std::memcpy(buffer_.get(), rows_, count * search_.depth * sizeof(float));
      rows_ = buffer_.get();
    }
    divide_by_length(buffer_.get() + row * search_.depth, search_.depth);
    factors_[row] = 1;
  }

  const Search& search_;
  const SearchKernels& kernels_;
  std::unique_ptr<float[]> buffer_;
  std::vector<float> factors_;
  const float* rows_ = nullptr;
};

// What one thread has and does.
class Worker {
 public:
  Worker(const Search& search, const SearchKernels& kernels, const Queries& queries,
         std::size_t rows)
      : heaps(search.num_queries, search.k),
        search_(search),
        kernels_(kernels),
        queries_(queries),
        block_(search, kernels, rows),
        scores_(rows * kMaxPanel),
        passed_(rows) {}

  void look_at(std::size_t begin, std::size_t count) {
    block_.read(begin, count);
    for (std::size_t panel = 0; panel < queries_.panels(); ++panel) {
      const std::size_t first = queries_.first(panel), in = queries_.in(panel);
      float least[kMaxPanel];
      for (std::size_t q = 0; q < kMaxPanel; ++q) {
        least[q] = q < in ? heaps.least(first + q) : std::numeric_limits<float>::infinity();
      }
      const ScoreArgs args = {
          .rows = block_.rows(),
          .ld = search_.depth,
          .count = count,
          .depth = search_.depth,
          .queries = queries_.at(panel),
          .in = in,
          .factor = block_.factors(),
          .least = least,
          .scores = scores_.data(),
          .passed = passed_.data(),
      };
      kernels_.score_panel(args);
      for (std::size_t row = 0; row < count; ++row) {
        for (std::uint32_t bits = passed_[row]; bits != 0; bits &= bits - 1) {
          const auto q = static_cast<std::size_t>(__builtin_ctz(bits));
          if (q >= in) break;  // a NaN among what fills the panel up
          heaps.offer(first + q, {scores_[row * kMaxPanel + q],
                                  static_cast<std::int64_t>(begin + row)});
        }
      }
    }
  }

  Heaps heaps;

 private:
  const Search& search_;
  const SearchKernels& kernels_;
  const Queries& queries_;
  Block block_;
  std::vector<float> scores_;
  std::vector<std::uint32_t> passed_;
};

// The same for up to kFewQueries queries.
class FewWorker {
 public:
  FewWorker(const Search& search, const SearchKernels& kernels, std::size_t rows)
      : heaps(search.num_queries, search.k),
        search_(search),
        kernels_(kernels),
        score_(search.kind == Rows::kBytes         ? kernels.score_bytes
               : search.kind == Rows::kSignedBytes ? kernels.score_signed_bytes
                                                   : kernels.score_floats),
        buffer_(new float[(search.kind == Rows::kBits ? rows : 1) * search.depth]),
        passed_(rows),
        scores_(rows * kFewQueries) {}

  void look_at(std::size_t begin, std::size_t count) {
    const void* rows = row_at(search_, begin);
    if (search_.kind == Rows::kBits) {
      copy_floats(search_, kernels_, begin, count, buffer_.get());
      rows = buffer_.get();
    }
    float least[kFewQueries];
    for (std::size_t q = 0; q < search_.num_queries; ++q) least[q] = heaps.least(q);
    FewArgs args = {
        .rows = rows,
        .count = count,
        .depth = search_.depth,
        .shift = search_.shift,
        .scale = search_.scale,
        .normalise = search_.normalise,
        .queries = static_cast<const float*>(search_.queries),
        .in = search_.num_queries,
        .least = least,
        .passed = passed_.data(),
        .scores = scores_.data(),
    };
    const std::size_t found = score_(args);
    args.normalise = false;
    for (std::size_t i = 0; i < found; ++i) {
      const std::size_t row = begin + (passed_[i] & ~kOddLength);
      float* const scores = scores_.data() + i * kFewQueries;
      if ((passed_[i] & kOddLength) != 0) score_odd(args, row, scores);
      for (std::size_t q = 0; q < search_.num_queries; ++q) {
        heaps.offer(q, {scores[q], static_cast<std::int64_t>(row)});
      }
    }
  }

  Heaps heaps;

 private:
  void score_odd(FewArgs args, std::size_t row, float* scores) {
    copy_floats(search_, kernels_, row, 1, buffer_.get());
    divide_by_length(buffer_.get(), search_.depth);
    std::uint32_t passed;
    args.rows = buffer_.get();
    args.count = 1;
    args.passed = &passed;
    args.scores = scores;
    kernels_.score_floats(args);
  }

  const Search& search_;
  const SearchKernels& kernels_;
  std::size_t (*score_)(const FewArgs&);
  std::unique_ptr<float[]> buffer_;
  std::vector<std::uint32_t> passed_;
  std::vector<float> scores_;
};

// The same for bits.
class BitWorker {
 public:
  BitWorker(const Search& search, const SearchKernels& kernels, std::size_t rows)
      : heaps(search.num_queries, search.k),
        search_(search),
        kernels_(kernels),
        distances_(rows) {}

  void look_at(std::size_t begin, std::size_t count) {
    const std::size_t width = search_.width;
    const auto* rows = static_cast<const std::uint8_t*>(search_.corpus) + begin * width;
    for (std::size_t q = 0; q < search_.num_queries; ++q) {
      kernels_.distances(rows, width, count,
                         static_cast<const std::uint8_t*>(search_.queries) + q * width,
                         distances_.data());
      for (std::size_t row = 0; row < count; ++row) {
        const auto score = static_cast<float>(-distances_[row]);
        if (score <= heaps.least(q)) continue;
        heaps.offer(q, {score, static_cast<std::int64_t>(begin + row)});
      }
    }
  }

  Heaps heaps;

 private:
  const Search& search_;
  const SearchKernels& kernels_;
  std::vector<std::int32_t> distances_;
};

// Threads of this call alone: the engines' pool has other things to do meanwhile. Each takes the
// next block until there is none; one that cannot be started is done without.
template <class W>
void look_at_all(const Search& search, std::vector<std::unique_ptr<W>>& workers,
                 std::size_t rows) {
  std::atomic<std::size_t> next{0};
  const auto work = [&](W& worker) {
    for (std::size_t begin; (begin = next.fetch_add(rows)) < search.count;) {
      worker.look_at(begin, std::min(rows, search.count - begin));
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(workers.size());
  sigset_t all, saved;  // signals belong to the threads of the program
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &saved);
  try {
    for (std::size_t i = 1; i < workers.size(); ++i) {
      threads.emplace_back([&work, &worker = *workers[i]] { work(worker); });
    }
  } catch (const std::system_error&) {
  }
  pthread_sigmask(SIG_SETMASK, &saved, nullptr);
  work(*workers[0]);
  for (std::thread& thread : threads) thread.join();
}

template <class W>
void write_best(const Search& search, const std::vector<std::unique_ptr<W>>& workers) {
  std::vector<Found> all;
  for (std::size_t q = 0; q < search.num_queries; ++q) {
    all.clear();
    for (const auto& worker : workers) {
      all.insert(all.end(), worker->heaps.begin(q), worker->heaps.end(q));
    }
    const auto end = all.begin() + static_cast<std::ptrdiff_t>(search.k);
    std::partial_sort(all.begin(), end, all.end(), before);
    for (std::size_t i = 0; i < search.k; ++i) {
      search.indices[q * search.k + i] = all[i].index;
      search.scores[q * search.k + i] = all[i].score;
    }
  }
}

template <class W, class... More>
void find(const Search& search, std::size_t rows, const More&... more) {
  const std::size_t blocks = (search.count + rows - 1) / rows;
  std::vector<std::unique_ptr<W>> workers(
      std::min(static_cast<std::size_t>(std::max(search.threads, 1)), blocks));
  for (auto& worker : workers) worker = std::make_unique<W>(search, more..., rows);
  look_at_all(search, workers, rows);
  write_best(search, workers);
}

}  // namespace

void find_products(const Search& search, const std::string& level) {
  const SearchKernels& kernels = kernels_for(level);
  if (search.num_queries == 0) return;
  const std::size_t fitting = kBlockBytes / (search.depth * sizeof(float) + 1);
  const std::size_t rows = std::min(std::max<std::size_t>(fitting / 84 * 84, 84), search.count);
  if (search.num_queries <= kFewQueries) return find<FewWorker>(search, rows, kernels);
  const Queries queries(search, kernels);
  find<Worker>(search, rows, kernels, queries);
}

void find_distances(const Search& search, const std::string& level) {
  const std::size_t rows =
      std::min(std::max<std::size_t>(kBlockBytes / (4 * search.width), 64), search.count);
  find<BitWorker>(search, rows, kernels_for(level));
}

}  // namespace kosine
