#include "seats.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>

namespace kosine {
namespace {

// Relaxed everywhere: nothing else is read because of these, and what is out of date costs a move.
constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

void Seats::enter(int rank) {
  const auto self = static_cast<pid_t>(syscall(SYS_gettid));  // gettid() is younger than some libcs
  seats_[static_cast<std::size_t>(rank)].thread.store(self, kRelaxed);
}

void Seats::call(int ranks, const cpu_set_t& allowed) {
  const bool others = !CPU_EQUAL(&allowed, &allowed_);
  allowed_ = allowed;
  const int here = sched_getcpu();
  seats_[0].processor.store(here, kRelaxed);
  if (here < 0) return;
  for (int rank = 1; rank < ranks; ++rank) {
    Seat& seat = seats_[static_cast<std::size_t>(rank)];
    const bool settled = !others && seat.avoids.load(kRelaxed) == here;
    if (!settled && !keep_off(seat, here)) return;
  }
}

bool Seats::sit(int rank, int ranks) {
  Seat& seat = seats_[static_cast<std::size_t>(rank)];
  const int here = sched_getcpu();
  if (here != seat.processor.load(kRelaxed)) seat.processor.store(here, kRelaxed);
  if (rank == 0 || here < 0) return false;
  for (int other = 0; other < ranks; ++other) {
    if (other == rank) continue;
    if (seats_[static_cast<std::size_t>(other)].processor.load(kRelaxed) != here) continue;
    return move(rank, ranks);
  }
  return false;
}

// False where it cannot be had: a sandbox may refuse it, and then the kernel's choice stays.
bool Seats::keep_off(Seat& seat, int processor) {
  const pid_t thread = seat.thread.load(kRelaxed);
  if (thread == 0) return true;  // has not started yet; it moves by itself
  cpu_set_t open = allowed_;
  CPU_CLR(static_cast<std::size_t>(processor), &open);
  if (CPU_COUNT(&open) == 0 || sched_setaffinity(thread, sizeof open, &open) != 0) return false;
  seat.avoids.store(processor, kRelaxed);
  return true;
}

bool Seats::move(int rank, int ranks) {
  cpu_set_t free = allowed_;
  for (int other = 0; other < ranks; ++other) {
    if (other == rank) continue;
    const int taken = seats_[static_cast<std::size_t>(other)].processor.load(kRelaxed);
    if (taken >= 0) CPU_CLR(static_cast<std::size_t>(taken), &free);
  }
  if (CPU_COUNT(&free) == 0 || sched_setaffinity(0, sizeof free, &free) != 0) return false;
  Seat& seat = seats_[static_cast<std::size_t>(rank)];
  seat.processor.store(sched_getcpu(), kRelaxed);
  // From here on only the caller's processor is closed to it.
  const int callers = seats_[0].processor.load(kRelaxed);
  if (callers >= 0) keep_off(seat, callers);
  return true;
}

}  // namespace kosine
