// The pool under ThreadSanitizer: calls of changing sizes from several threads at once, with
// barriers inside, so that every wait in it is gone through many times; and a change that wakes
// nobody.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "thread_pool.h"

namespace {

constexpr int kCallers = 3;
constexpr int kCalls = 400;
constexpr int kRounds = 3;

// Every rank writes its own cell, all meet, every rank reads all cells: a barrier that lets one
// through early is a race on plain ints.
bool call(kosine::ThreadPool& pool, int threads) {
  std::vector<int> cells(static_cast<std::size_t>(threads), 0);
  std::atomic<int> wrong{0};
  kosine::Barrier barrier(threads);
  pool.execute(threads, [&](int rank) {
    for (int round = 1; round <= kRounds; ++round) {
      cells[static_cast<std::size_t>(rank)] = round;
      barrier.wait();
      for (int cell : cells) wrong += cell != round;
      barrier.wait();
    }
  });
  for (int cell : cells) wrong += cell != kRounds;
  return wrong == 0;
}

// A wake-up that is lost costs time, and hangs nobody.
bool survives_a_lost_wake_up() {
  kosine::Word word;
  std::thread sleeper([&] { kosine::wait_while(word, 0, kosine::kNoSpin); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  word.reset(1);
  sleeper.join();
  return true;
}

}  // namespace

int main() {
  std::atomic<bool> right{survives_a_lost_wake_up()};
  {
    kosine::ThreadPool pool;
    std::vector<std::thread> callers;
    for (int c = 0; c < kCallers; ++c) {
      callers.emplace_back([&, c] {
        for (int i = 0; i < kCalls; ++i) {
          if (!call(pool, 1 + (i + c) % 5)) right = false;
          // Long enough, now and then, for the threads to fall asleep.
          if (i % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
  std::puts(right ? "right" : "wrong");
  return right ? 0 : 1;
}
