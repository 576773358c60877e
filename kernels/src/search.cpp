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

// Queries as the kernels read them.
class Queries {
 public:
  Queries(const Search& search, const SearchKernels& kernels)
      : from_(static_cast<const float*>(search.queries)),
        count_(search.num_queries),
        depth_(search.depth),
        few_(count_ <= kFewQueries),
        panel_(few_ ? kFewQueries : kernels.panel) {
    if (few_) return;
    packed_.resize(panels() * panel_ * depth_);
    for (std::size_t q = 0; q < count_; ++q) {
      float* const to = packed_.data() + q / panel_ * panel_ * depth_ + q % panel_;
      for (std::size_t i = 0; i < depth_; ++i) to[i * panel_] = from_[q * depth_ + i];
    }
  }

  bool few() const { return few_; }
  std::size_t panels() const { return (count_ + panel_ - 1) / panel_; }
  std::size_t first(std::size_t panel) const { return panel * panel_; }
  std::size_t in(std::size_t panel) const { return std::min(panel_, count_ - first(panel)); }
  const float* at(std::size_t panel) const {
    return (few_ ? from_ : packed_.data()) + panel * panel_ * depth_;
  }

 private:
  const float* from_;
  std::size_t count_, depth_;
  bool few_;
  std::size_t panel_;
  std::vector<float> packed_;
};

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
    const std::size_t depth = search_.depth;
    rows_ = buffer_.get();
    if (search_.kind == Rows::kFloats) {
      rows_ = static_cast<const float*>(search_.corpus) + begin * depth;
    } else {
      const char* from = static_cast<const char*>(search_.corpus) + begin * search_.width;
      for (std::size_t i = 0; i < count; ++i) {
        kernels_.widen(search_.kind, from + i * search_.width, depth, search_.shift,
                       search_.scale, buffer_.get() + i * depth);
      }
    }
    for (std::size_t i = 0; search_.normalise && i < count; ++i) measure(i, count);
  }

  const float* rows() const { return rows_; }
  const float* factors() const { return factors_.data(); }

 private:
  void measure(std::size_t row, std::size_t count) {
    const float squares = kernels_.squares(rows_ + row * search_.depth, search_.depth);
    if (squares > 1e-30f && squares < 1e30f) {
      factors_[row] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(squares)));
      return;
    }
    // Squares, or products, of such a row may overflow or vanish: it is divided in double.
    if (rows_ != buffer_.get()) {
      std::memcpy(buffer_.get(), rows_, count * search_.depth * sizeof(float));
      rows_ = buffer_.get();
    }
    float* const x = buffer_.get() + row * search_.depth;
    double sum = 0;
    for (std::size_t i = 0; i < search_.depth; ++i) sum += static_cast<double>(x[i]) * x[i];
    const double length = sum == 0 ? 1 : std::sqrt(sum);
    for (std::size_t i = 0; i < search_.depth; ++i) x[i] = static_cast<float>(x[i] / length);
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
      (queries_.few() ? kernels_.score_few : kernels_.score_panel)(args);
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

std::size_t workers_for(const Search& search, std::size_t rows) {
  const std::size_t blocks = (search.count + rows - 1) / rows;
  return std::min(static_cast<std::size_t>(std::max(search.threads, 1)), blocks);
}

}  // namespace

void find_products(const Search& search, const std::string& level) {
  const SearchKernels& kernels = kernels_for(level);
  const std::size_t fitting = kBlockBytes / (search.depth * sizeof(float) + 1);
  const std::size_t rows = std::min(std::max<std::size_t>(fitting / 84 * 84, 84), search.count);
  const Queries queries(search, kernels);
  std::vector<std::unique_ptr<Worker>> workers(workers_for(search, rows));
  for (auto& worker : workers) {
    worker = std::make_unique<Worker>(search, kernels, queries, rows);
  }
  look_at_all(search, workers, rows);
  write_best(search, workers);
}

void find_distances(const Search& search, const std::string& level) {
  const SearchKernels& kernels = kernels_for(level);
  const std::size_t rows =
      std::min(std::max<std::size_t>(kBlockBytes / (4 * search.width), 64), search.count);
  std::vector<std::unique_ptr<BitWorker>> workers(workers_for(search, rows));
  for (auto& worker : workers) worker = std::make_unique<BitWorker>(search, kernels, rows);
  look_at_all(search, workers, rows);
  write_best(search, workers);
}

}  // namespace kosine
