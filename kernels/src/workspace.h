// The buffers that one chunk of a batch lives in while it goes through the layers.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

#include "arena.h"
#include "model.h"
#include "schedule.h"

namespace kosine {

// Rows `stride` elements apart.
template <class T>
struct Matrix {
  T* data = nullptr;
  std::size_t stride = 0;

  T* row(std::size_t i) const { return data + i * stride; }
};

// Activations or heads, of whatever table. Rows `stride` bytes apart, a multiple of a cache line.
struct ActivationMatrix {
  char* data = nullptr;
  std::size_t stride = 0;

  char* row(std::size_t i) const { return data + i * stride; }
};

class Workspace {
 public:
  // Makes room for a chunk that `threads` threads work on. Throws std::bad_alloc.
  void prepare(const Model& model, const Chunk& chunk, std::size_t threads);

  Matrix<float> x;            // (rows, hidden): the residual stream
  ActivationMatrix input;     // x as the next product reads it: while the feed-forward adds to x,
                              // slice by slice, this stays what it was
  Matrix<float> branch;       // (rows, hidden): what is normed before it is added to x
  ActivationMatrix qkv;       // (rows, heads of q, k and v * head size): heads
  ActivationMatrix context;   // (rows, heads * head size)
  ActivationMatrix inner;     // (rows, a slice or all of the feed-forward)
  Matrix<float> staged;       // what becomes a context or inner activations, where a table rounds
                              // whole rows
  Matrix<float> pooled;       // (sentences, the widest of hidden and dense layers)
  Matrix<float> pooled_next;
  float* scratch(std::size_t thread) const { return scratch_ + thread * scratch_size_; }

 private:
  float* scratch_ = nullptr;
  std::size_t scratch_size_ = 0;
  Arena arena_;
};

// Workspaces that no call uses. Kept for the next one, so that their memory is mapped once; there
// are never more than were in use at one time.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> take();
  void put(std::unique_ptr<Workspace> workspace) noexcept;

 private:
  std::mutex mutex_;
  std::size_t lent_ = 0;
  std::vector<std::unique_ptr<Workspace>> free_;
};

}  // namespace kosine
