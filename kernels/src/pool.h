// Threads that wait for work.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "futex.h"
#include "seats.h"

namespace kosine {

// How long a thread watches for what it waits for before it sleeps in the kernel.
using Patience = std::chrono::microseconds;
constexpr Patience kNever{0};       // more threads than processors: spinning keeps others out
constexpr Patience kRest{50};       // after a batch: the next may follow at once
// Within a batch: longer than it takes a host to start a sleeping virtual processor again, or its
// first barrier would send the caller to sleep, and where that one then wakes is the kernel's choice.
constexpr Patience kGap{300};
constexpr Patience kIdle{10'000};   // between batches, where the program wants that

// kNever where `threads` are more than the processors that this process may use, else `patience`.
Patience patience_for(int threads, Patience patience);

// Returns the first value seen that is not `old`.
std::uint32_t wait_while(const Word& word, std::uint32_t old, Patience patience);

// All `count` threads meet, over and over.
class Barrier {
 public:
  explicit Barrier(int count)
      : count_(static_cast<std::uint32_t>(count)), patience_(patience_for(count, kGap)) {}
  void wait();

 private:
  const std::uint32_t count_;
  const Patience patience_;
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  Word round_;
};

class Pool {
 public:
  static constexpr int kMaxThreads = Seats::kMost;

  Pool() = default;
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Calls task(0) here and task(1) .. task(threads - 1) on the pool's threads, and returns when
  // all are done. One call at a time: others wait. `task` must not throw. Afterwards the threads
  // watch for the next call for as long as `idle` says.
  // Each is on a processor of its own, as far as this can be had (seats.h).
  // Throws std::system_error where a thread cannot be started; then nothing has run.
  void run(int threads, const std::function<void(int)>& task, Patience idle = kRest);

 private:
  void grow(int threads);
  void serve(int rank);

  std::mutex running_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* task_ = nullptr;
  Patience idle_ = kRest;
  Seats seats_;
  bool apart_ = false;  // whether this call's threads keep to seats of their own
  // What the threads watch: a counter in the upper bits, how many ranks take part in the lower.
  // One word, so that a thread that takes no part never looks at task_.
  Word call_;
  Word unfinished_;
};

}  // namespace kosine
