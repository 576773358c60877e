// An encoder's arithmetic, from ids to unit vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model.h"
#include "schedule.h"
#include "thread_pool.h"
#include "workspace.h"

namespace kosine {

// A batch, checked: ids and positions lie inside their tables.
struct Batch {
  const std::int32_t* ids;        // (tokens,)
  const std::int32_t* positions;  // (tokens,)
  const std::int32_t* skip;       // (sentences,) or null
  float* vectors;                 // (sentences, dim)
  float* norms;                   // (sentences,)
  float* states;                  // (tokens, width of rows before pooling) or null
};

// One thread of those that take a chunk through the layers together.
struct Member {
  std::size_t rank;
  std::size_t size;
  Barrier* barrier;  // null where size is 1

  struct Range {
    std::size_t begin;
    std::size_t end;
  };
  Range share_of(std::size_t count) const {
    return {count * rank / size, count * (rank + 1) / size};
  }
  void meet() const {
    if (barrier != nullptr) barrier->wait();
  }
};

// Every member of a team calls this with the same chunk and the same prepared workspace.
void walk_steps(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& work,
                const Member& member);

}  // namespace kosine
