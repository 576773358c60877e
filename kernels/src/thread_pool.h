// Threads that wait for work.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "affinity.h"
#include "futex.h"

namespace kosine {

// How long a thread watches for what it waits for before it sleeps in the kernel.
using SpinTime = std::chrono::microseconds;
constexpr SpinTime kNoSpin{0};          // more threads than processors: spinning keeps others out
constexpr SpinTime kSpinAfterCall{50};  // the next batch may follow at once
// Within a batch: longer than it takes a host to start a sleeping virtual processor again, or its
// first barrier would send the caller to sleep, and where that one then wakes is the kernel's choice.
constexpr SpinTime kSpinInCall{300};
constexpr SpinTime kSpinLong{10'000};  // between batches, where the program wants that

// kNoSpin where `threads` are more than the processors that this process may use, else `spin_time`.
SpinTime spin_time_for(int threads, SpinTime spin_time);

// Returns the first value seen that is not `old`.
std::uint32_t wait_while(const Word& word, std::uint32_t old, SpinTime spin_time);

// All `count` threads meet, over and over.
class Barrier {
 public:
  explicit Barrier(int count)
      : count_(static_cast<std::uint32_t>(count)), spin_time_(spin_time_for(count, kSpinInCall)) {}
  void wait();

 private:
  const std::uint32_t count_;
  const SpinTime spin_time_;
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  Word round_;
};

class ThreadPool {
 public:
  static constexpr int kMaxThreads = Affinity::kMaxThreads;

  ThreadPool() = default;
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls task(0) here and task(1) .. task(threads - 1) on the pool's threads, and returns when
  // all are done. One call at a time: others wait. `task` must not throw. Afterwards the threads
  // watch for the next call for as long as `idle` says.
  // Each is on a processor of its own, as far as this can be had (affinity.h).
  // Throws std::system_error where a thread cannot be started; then nothing has run.
  void execute(int threads, const std::function<void(int)>& task, SpinTime idle = kSpinAfterCall);

 private:
  void grow(int threads);
  void serve(int rank);

  std::mutex running_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* task_ = nullptr;
  SpinTime idle_ = kSpinAfterCall;
  Affinity affinity_;
  bool apart_ = false;  // whether this call's threads keep to processors of their own
  // What the threads watch: a counter in the upper bits, how many ranks take part in the lower.
  // One word, so that a thread that takes no part never looks at task_.
  Word call_;
  Word unfinished_;
};

}  // namespace kosine
