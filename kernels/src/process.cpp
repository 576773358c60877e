#include "process.h"

#include <pthread.h>

#include <atomic>

namespace kosine {
namespace {

std::atomic<Process*> process{nullptr};

// Only the pointer is dropped: the parent may have been anywhere in its code when the child was
// made, so nothing of its state can be touched, destructors least of all.
void forget() { process.store(nullptr, std::memory_order_relaxed); }

}  // namespace

Process& Process::current() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget);
  (void)registered;
  Process* seen = process.load(std::memory_order_acquire);
  if (seen != nullptr) return *seen;
  auto* made = new Process;
  if (process.compare_exchange_strong(seen, made, std::memory_order_acq_rel)) return *made;
  delete made;  // another thread was first
  return *seen;
}

}  // namespace kosine
