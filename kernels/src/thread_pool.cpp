#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <chrono>

namespace kosine {
namespace {

constexpr int kSpinsPerLook = 32;  // at the clock
constexpr int kYields = 4;         // before a thread sleeps
constexpr int kRankBits = 11;      // kMaxThreads fits
constexpr std::uint32_t kRankMask = (1u << kRankBits) - 1;
constexpr std::uint32_t kStop = kRankMask;  // more ranks than there can be
static_assert(ThreadPool::kMaxThreads < static_cast<int>(kStop));

constexpr int kMaxMoves = 4;      // in a call: a kernel that insists has its reasons

// What this thread has to do with the call that it takes part in.
struct Part {
  Affinity* affinity = nullptr;  // null where there are more threads than processors
  int rank = 0;
  int ranks = 0;
  int moves = 0;
};
thread_local Part part;

void keep_apart() {
  if (part.affinity == nullptr || part.moves == kMaxMoves) return;
  part.moves += part.affinity->separate(part.rank, part.ranks);
}

// Signals belong to the threads of the program, not to ours.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

SpinTime spin_time_for(int threads, SpinTime spin_time) {
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) != 0) return spin_time;
  return threads <= CPU_COUNT(&usable) ? spin_time : kNoSpin;
}

std::uint32_t wait_while(const Word& word, std::uint32_t old, SpinTime spin_time) {
  std::uint32_t seen = word.get();
  if (seen == old && spin_time != kNoSpin) {
    const auto end = std::chrono::steady_clock::now() + spin_time;
    do {
      for (int i = 0; i < kSpinsPerLook && seen == old; ++i) {
        __builtin_ia32_pause();
        seen = word.get();
      }
    } while (seen == old && std::chrono::steady_clock::now() < end);
  }
  // Where there are more threads than processors, the one that is waited for may just need this.
  for (int i = 0; i < kYields && seen == old; ++i) {
    sched_yield();
    seen = word.get();
  }
  while (seen == old) {
    word.sleep(old);
    seen = word.get();
  }
  return seen;
}

void Barrier::wait() {
  if (count_ == 1) return;
  const std::uint32_t round = round_.get();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.set(round + 1);
  } else {
    wait_while(round_, round, spin_time_);
  }
  // Who slept may have been woken on the processor of another.
  keep_apart();
}

ThreadPool::~ThreadPool() {
  call_.set(call_.get() | kStop);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::execute(int threads, const std::function<void(int)>& task, SpinTime idle) {
  if (threads <= 1) return task(0);
  const std::lock_guard lock(running_);
  grow(threads);
  task_ = &task;
  idle_ = spin_time_for(threads, idle);
  unfinished_.reset(static_cast<std::uint32_t>(threads - 1));
  cpu_set_t allowed;
  apart_ = sched_getaffinity(0, sizeof allowed, &allowed) == 0 && threads <= CPU_COUNT(&allowed);
  if (apart_) affinity_.begin_call(threads, allowed);
  part = {apart_ ? &affinity_ : nullptr, 0, threads, 0};
  const std::uint32_t count = (call_.get() >> kRankBits) + 1;
  call_.set(count << kRankBits | static_cast<std::uint32_t>(threads));
  task(0);
  part = {};
  const SpinTime spin_time = spin_time_for(threads, kSpinInCall);
  for (std::uint32_t left; (left = unfinished_.get()) != 0;) {
    wait_while(unfinished_, left, spin_time);
  }
}

void ThreadPool::grow(int threads) {
  const SignalsBlocked blocked;
  while (static_cast<int>(threads_.size()) < threads - 1) {
    const int rank = static_cast<int>(threads_.size()) + 1;
    threads_.emplace_back([this, rank] { serve(rank); });
    pthread_setname_np(threads_.back().native_handle(), "kosine");
  }
}

void ThreadPool::serve(int rank) {
  affinity_.enlist(rank);
  std::uint32_t seen = 0;
  SpinTime idle = kNoSpin;
  for (;;) {
    seen = wait_while(call_, seen, idle);
    const std::uint32_t ranks = seen & kRankMask;
    if (ranks == kStop) return;
    if (rank >= static_cast<int>(ranks)) {
      idle = kNoSpin;  // not wanted by calls of this size: no reason to watch for the next
      continue;
    }
    idle = idle_;
    part = {apart_ ? &affinity_ : nullptr, rank, static_cast<int>(ranks), 0};
    keep_apart();
    (*task_)(rank);
    part = {};
    unfinished_.count_down();
  }
}

}  // namespace kosine
