// Which processor each thread of a call is on, so that no two take turns on one.
//
// Linux may wake a thread on the processor of the one that wakes it though another is idle. In a
// virtual machine that is the rule after a pause: a processor that the host has put to sleep
// counts as taken. Both threads then share one until the kernel's balancing sees it, which is after
// a small call has ended, and every barrier costs a change of threads on top.
//
// So the pool's threads are kept off the processor that the program's thread calls from, before
// they are woken; and one that finds itself on the processor of another moves away. Nothing is
// pinned: all other processors stay open to them. The program's own thread is never moved.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <array>
#include <atomic>

namespace kosine {

class Affinity {
 public:
  static constexpr int kMaxThreads = 1024;

  // The pool's thread `rank` says that it is there; before it takes part in anything.
  void enlist(int rank);

  // The program's thread, before it wakes the others: keeps the `ranks` - 1 of the pool off the
  // processor that it is on. `allowed` are those that all may use.
  void begin_call(int ranks, const cpu_set_t& allowed);

  // Within a call, now and then: says where `rank` is, and moves it if another is there too. With
  // rank 0 it only says so. Returns whether the thread has moved.
  bool separate(int rank, int ranks);

 private:
  static constexpr int kNowhere = -1;

  struct State {
    std::atomic<pid_t> thread{0};
    std::atomic<int> processor{kNowhere};
    std::atomic<int> avoids{kNowhere};
  };

  bool avoid(State& state, int processor);
  bool move(int rank, int ranks);

  std::array<State, kMaxThreads> threads_;
  cpu_set_t allowed_{};
};

}  // namespace kosine
