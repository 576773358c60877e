#include "affinity.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

namespace kosine {
namespace {

// Relaxed everywhere: nothing else is read because of these, and what is out of date costs a move.
constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

void Affinity::enlist(int rank) {
  const auto self = static_cast<pid_t>(syscall(SYS_gettid));  // gettid() is younger than some libcs
  threads_[static_cast<std::size_t>(rank)].thread.store(self, kRelaxed);
}

void Affinity::begin_call(int ranks, const cpu_set_t& allowed) {
  const bool others = !CPU_EQUAL(&allowed, &allowed_);
  allowed_ = allowed;
  const int here = sched_getcpu();
  threads_[0].processor.store(here, kRelaxed);
  if (here < 0) return;
  for (int rank = 1; rank < ranks; ++rank) {
    State& state = threads_[static_cast<std::size_t>(rank)];
    const bool settled = !others && state.avoids.load(kRelaxed) == here;
    if (!settled && !avoid(state, here)) return;
  }
}

bool Affinity::separate(int rank, int ranks) {
  State& state = threads_[static_cast<std::size_t>(rank)];
  const int here = sched_getcpu();
  if (here != state.processor.load(kRelaxed)) state.processor.store(here, kRelaxed);
  if (rank == 0 || here < 0) return false;
  for (int other = 0; other < ranks; ++other) {
    if (other == rank) continue;
    if (threads_[static_cast<std::size_t>(other)].processor.load(kRelaxed) != here) continue;
    return move(rank, ranks);
  }
  return false;
}

// False where it cannot be had: a sandbox may refuse it, and then the kernel's choice stays.
bool Affinity::avoid(State& state, int processor) {
  const pid_t thread = state.thread.load(kRelaxed);
  if (thread == 0) return true;  // has not started yet; it moves by itself
  cpu_set_t open = allowed_;
  CPU_CLR(static_cast<std::size_t>(processor), &open);
  if (CPU_COUNT(&open) == 0 || sched_setaffinity(thread, sizeof open, &open) != 0) return false;
  state.avoids.store(processor, kRelaxed);
  return true;
}

bool Affinity::move(int rank, int ranks) {
  cpu_set_t free = allowed_;
  for (int other = 0; other < ranks; ++other) {
    if (other == rank) continue;
    const int taken = threads_[static_cast<std::size_t>(other)].processor.load(kRelaxed);
    if (taken >= 0) CPU_CLR(static_cast<std::size_t>(taken), &free);
  }
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return false;
  State& state = threads_[static_cast<std::size_t>(rank)];
  state.processor.store(sched_getcpu(), kRelaxed);
  // From here on only the caller's processor is closed to it.
  const int callers = threads_[0].processor.load(kRelaxed);
  if (callers >= 0) avoid(state, callers);
  return true;
}

}  // namespace kosine
