// How a batch is shared among threads: a pure function of lengths and of the table in use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace kosine {

struct Sentence {
  std::size_t index;   // in the batch
  std::size_t begin;   // its first token in the batch
  std::size_t length;  // at least 1
};

// Sentences that go through the layers together.
struct Chunk {
  std::vector<Sentence> sentences;
  std::size_t rows = 0;
  std::size_t longest = 0;
};

struct Schedule {
  std::vector<Chunk> chunks;
  // False: each chunk belongs to one thread, which takes it through all layers and meets no
  // other. True: all threads work on one chunk at a time, each on its share of the columns.
  bool together = false;
};

// starts: (count + 1,) offsets, ascending.
Schedule schedule_batch(const std::int32_t* starts, std::size_t count, std::size_t threads,
                const Kernels& kernels);

}  // namespace kosine
