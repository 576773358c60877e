#include "engine.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu.h"
#include "forward.h"
#include "process.h"
#include "schedule.h"

namespace kosine {
namespace {

[[noreturn]] void refuse(const std::string& problem, const std::string& limit) {
  throw std::invalid_argument(problem + "; " + limit);
}

void check_table(const char* what, std::span<const std::int32_t> rows, std::size_t limit) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0 || static_cast<std::size_t>(rows[i]) >= limit) {
      refuse(std::string(what) + "[" + std::to_string(i) + "] is " + std::to_string(rows[i]),
             "0 to " + std::to_string(limit - 1) + " are in the table");
    }
  }
}

void check_starts(std::span<const std::int32_t> starts, std::size_t tokens) {
  if (starts.size() < 2) {
    refuse("starts has " + std::to_string(starts.size()) + " entries",
           "one more than sentences, of which there must be one");
  }
  if (starts.front() != 0 || starts.back() < 0 ||
      static_cast<std::size_t>(starts.back()) != tokens) {
    refuse("starts goes from " + std::to_string(starts.front()) + " to " +
               std::to_string(starts.back()),
           "it must go from 0 to the " + std::to_string(tokens) + " ids");
  }
  for (std::size_t i = 1; i < starts.size(); ++i) {
    if (starts[i] <= starts[i - 1]) {
      refuse("starts[" + std::to_string(i) + "] is " + std::to_string(starts[i]) + " after " +
                 std::to_string(starts[i - 1]),
             "each sentence has at least one token");
    }
  }
}

void check_size(const char* what, std::size_t size, std::size_t needed) {
  if (size != needed) {
    refuse(std::string(what) + " has " + std::to_string(size) + " elements",
           std::to_string(needed) + " are needed");
  }
}

class Lease {
 public:
  Lease(WorkspacePool& workspaces, std::size_t count) : pool_(workspaces) {
    for (std::size_t i = 0; i < count; ++i) workspaces_.push_back(workspaces.take());
  }
  ~Lease() {
    for (auto& workspace : workspaces_) pool_.put(std::move(workspace));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Workspace& operator[](std::size_t i) { return *workspaces_[i]; }

 private:
  WorkspacePool& pool_;
  std::vector<std::unique_ptr<Workspace>> workspaces_;
};

// Each chunk by one thread, which takes the next when it is done.
void run_chunks_apart(const Model& model, const Batch& batch, const Schedule& schedule,
                      int max_threads, SpinTime idle) {
  Process& process = Process::current();
  const int threads = std::min(max_threads, static_cast<int>(schedule.chunks.size()));
  Lease workspaces(process.workspaces, static_cast<std::size_t>(threads));
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(threads));
  std::atomic<std::size_t> next{0};
  const auto work = [&](int thread) {
    const auto rank = static_cast<std::size_t>(thread);
    try {
      for (;;) {
        const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= schedule.chunks.size()) return;
        workspaces[rank].prepare(model, schedule.chunks[i], 1);
        walk_steps(model, batch, schedule.chunks[i], workspaces[rank], {0, 1, nullptr});
      }
    } catch (...) {  // no memory
      errors[rank] = std::current_exception();
    }
  };
  process.threads.execute(threads, work, idle);
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

// All threads on one chunk after another.
void run_chunks_together(const Model& model, const Batch& batch, const Schedule& schedule,
                         int threads, SpinTime idle) {
  Process& process = Process::current();
  const auto size = static_cast<std::size_t>(threads);
  Lease workspace(process.workspaces, 1);
  Barrier barrier(threads);
  for (const Chunk& chunk : schedule.chunks) {
    workspace[0].prepare(model, chunk, size);
    const auto work = [&](int thread) {
      const Member member{static_cast<std::size_t>(thread), size, &barrier};
      walk_steps(model, batch, chunk, workspace[0], member);
    };
    process.threads.execute(threads, work, idle);
  }
}

int checked_threads(int threads) {
  if (threads < 1 || threads > ThreadPool::kMaxThreads) {
    refuse("threads is " + std::to_string(threads),
           "1 to " + std::to_string(ThreadPool::kMaxThreads) + " are possible");
  }
  return threads;
}

}  // namespace

Engine::Engine(const Tensors& tensors, const std::vector<Step>& steps, const std::string& dtype,
               const std::set<std::string>& bytes_only, const std::string& isa, int threads,
               bool spin, Guard guard)
    : model_(tensors, steps, select_kernels(dtype_named(dtype), isa),
             select_kernels(Dtype::kW8A16, isa), bytes_only, select_kernels(Dtype::kFloat32, isa), guard),
      threads_(checked_threads(threads)),
      idle_(spin ? kSpinLong : kSpinAfterCall) {}

void Engine::forward(std::span<const std::int32_t> ids, std::span<const std::int32_t> starts,
                     std::span<const std::int32_t> positions,
                     std::optional<std::span<const std::int32_t>> skip, std::span<float> vectors,
                     std::span<float> norms, std::optional<std::span<float>> states) const {
  // Copies: the caller's arrays may be written by another thread once they have been checked.
  const std::vector<std::int32_t> own_ids(ids.begin(), ids.end());
  const std::vector<std::int32_t> own_starts(starts.begin(), starts.end());
  const std::vector<std::int32_t> own_positions(positions.begin(), positions.end());
  std::vector<std::int32_t> own_skip;
  if (skip.has_value()) own_skip.assign(skip->begin(), skip->end());
  check_starts(own_starts, own_ids.size());
  const std::size_t sentences = own_starts.size() - 1;
  check_size("positions", own_positions.size(), own_ids.size());
  check_size("vectors", vectors.size(), sentences * model_.dim);
  check_size("norms", norms.size(), sentences);
  if (states.has_value()) check_size("states", states->size(), own_ids.size() * model_.hidden);
  check_table("ids", own_ids, model_.vocab_size);
  if (model_.has_positions) check_table("positions", own_positions, model_.num_positions);
  for (std::size_t i = 0; i < sentences; ++i) {
    const auto length = static_cast<std::size_t>(own_starts[i + 1] - own_starts[i]);
    if (length > model_.max_length) {
      refuse("sentence " + std::to_string(i) + " has " + std::to_string(length) + " tokens",
             "at most " + std::to_string(model_.max_length) + " are possible");
    }
  }
  if (skip.has_value()) check_size("skip", own_skip.size(), sentences);
  for (std::size_t i = 0; i < own_skip.size(); ++i) {
    if (own_skip[i] < 0) {
      refuse("skip[" + std::to_string(i) + "] is " + std::to_string(own_skip[i]),
             "0 or more is needed");
    }
  }
  const Batch batch{own_ids.data(), own_positions.data(),
                    skip.has_value() ? own_skip.data() : nullptr, vectors.data(), norms.data(),
                    states.has_value() ? states->data() : nullptr};
  const Schedule schedule = schedule_batch(own_starts.data(), sentences,
                                           static_cast<std::size_t>(threads_), model_.kernels);
  if (schedule.together) {
    run_chunks_together(model_, batch, schedule, threads_, idle_);
  } else {
    run_chunks_apart(model_, batch, schedule, threads_, idle_);
  }
}

}  // namespace kosine
