// Sleep until a word changes, and wake those who do: Linux's futex, without std::atomic::wait.
//
// libstdc++ wakes nobody where it sees no sleeper, and looks with a plain load. A processor may do
// that load before the store of the new value has left it, while a thread that goes to sleep just
// then still sees the old value; and a sleep has no end there, so one wake-up that is lost is a
// program that hangs. Here a fence stands between the two, and a sleep ends after a while, to look
// again.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>

namespace kosine {

// A word that threads wait for, and how many of them may be asleep.
class Word {
 public:
  // Release: what was written before is seen by those who see the new value.
  void set(std::uint32_t value) {
    value_.store(value, std::memory_order_release);
    wake();
  }
  std::uint32_t get() const { return value_.load(std::memory_order_acquire); }
  // Nobody is woken: for values that nobody waits to leave.
  void reset(std::uint32_t value) { value_.store(value, std::memory_order_relaxed); }
  // One less; the last one wakes all.
  void count_down() {
    if (value_.fetch_sub(1, std::memory_order_acq_rel) == 1) wake();
  }

  // Returns once the value is not `old`, or after `kLongestNs` at the latest.
  void sleep(std::uint32_t old) const {
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    // The kernel compares once more, and does not sleep where the value has changed.
    const timespec longest{0, kLongestNs};
    syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, old, &longest, nullptr, 0);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  static constexpr long kLongestNs = 100'000'000;
  static_assert(sizeof(std::atomic<std::uint32_t>) == sizeof(std::uint32_t));

  void wake() {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_relaxed) == 0) return;
    syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
  }

  alignas(64) std::atomic<std::uint32_t> value_{0};
  mutable std::atomic<std::uint32_t> sleepers_{0};
};

}  // namespace kosine
