#include "workspace.h"

#include <algorithm>
#include <cstring>

namespace kosine {
namespace {

// Elements between rows: whole cache lines, and an odd number of them, so that the rows of a
// tile do not all fall into the same few sets of the L1 cache.
std::size_t stride_of(std::size_t columns, std::size_t element) {
  const std::size_t lines = round_up(columns * element, kAlignment) / kAlignment;
  return (lines | 1) * kAlignment / element;
}

// Products read whole steps of the depth, and nothing else ever writes the columns that pad them.
void clear_padding(const ActivationMatrix& matrix, std::size_t rows, std::size_t columns,
                   std::size_t k_step) {
  const std::size_t bytes = (round_up(columns, k_step) - columns) * matrix.element;
  if (bytes == 0) return;
  for (std::size_t i = 0; i < rows; ++i) std::memset(matrix.at(i, columns), 0, bytes);
}

}  // namespace

void Workspace::prepare(const Model& model, const Chunk& chunk, std::size_t threads) {
  const Kernels& kernels = model.kernels;
  const std::size_t rows = chunk.rows;
  const std::size_t sentences = chunk.sentences.size();
  // Products write whole panels.
  const auto panels = [&](std::size_t columns) { return round_up(columns, kernels.panel); };
  const std::size_t hidden = panels(model.hidden_size);
  const std::size_t inner_panels = model.layers[0].up.panels;
  const std::size_t inner_columns =
      kernels.panel * (threads == 1 ? std::min(model.slice_panels, inner_panels) : inner_panels);
  std::size_t widest = model.hidden_size;
  for (const DenseLayer& dense : model.dense) {
    widest = std::max(widest, dense.linear.panels * model.floats.panel);
  }
  scratch_size_ = round_up(kernels.attention_scratch(chunk.longest, model.head_size),
                           kAlignment / sizeof(float));

  std::size_t bytes = 0;
  bool taking = false;
  const auto take = [&](std::size_t count, std::size_t columns, std::size_t element) -> char* {
    const std::size_t size = count * columns * element;
    bytes += round_up(size, kAlignment);
    return taking ? arena_.take<char>(size) : nullptr;
  };
  const auto floats = [&](Matrix<float>& matrix, std::size_t count, std::size_t columns) {
    matrix.stride = stride_of(columns, sizeof(float));
    matrix.data = reinterpret_cast<float*>(take(count, matrix.stride, sizeof(float)));
  };
  const auto activations = [&](ActivationMatrix& matrix, std::size_t count, std::size_t columns) {
    matrix.element = kernels.activation;
    matrix.stride = stride_of(round_up(columns, kernels.k_step), matrix.element);
    matrix.data = take(count, matrix.stride, matrix.element);
  };
  const auto all = [&] {
    if (model.project.has_value()) floats(embedded, rows, model.embedding_size);
    floats(x, rows, hidden);
    activations(input, rows, std::max(model.hidden_size, model.embedding_size));
    floats(qkv, rows, panels(3 * model.hidden_size));
    activations(context, rows, model.hidden_size);
    activations(inner, rows, inner_columns);
    floats(pooled, sentences, widest);
    floats(pooled_next, sentences, widest);
    scratch_ = reinterpret_cast<float*>(take(threads, scratch_size_, sizeof(float)));
  };

  all();
  // Under guards every buffer ends where its last row ends, so each chunk gets buffers of its own.
  if (bytes > arena_.capacity() || model.guard != Guard::kNone) {
    arena_ = Arena(0, Guard::kNone);  // first give back what is too small
    arena_ = Arena(bytes, model.guard);
  }
  arena_.rewind();
  taking = true;
  all();
  clear_padding(input, rows, model.embedding_size, kernels.k_step);
  clear_padding(context, rows, model.hidden_size, kernels.k_step);
}

std::unique_ptr<Workspace> WorkspaceShelf::take() {
  const std::lock_guard lock(mutex_);
  at_rest_.reserve(at_rest_.size() + lent_ + 1);  // so that `put` never has to allocate
  std::unique_ptr<Workspace> workspace;
  if (at_rest_.empty()) {
    workspace = std::make_unique<Workspace>();
  } else {
    workspace = std::move(at_rest_.back());
    at_rest_.pop_back();
  }
  ++lent_;
  return workspace;
}

void WorkspaceShelf::put(std::unique_ptr<Workspace> workspace) noexcept {
  const std::lock_guard lock(mutex_);
  at_rest_.push_back(std::move(workspace));
  --lent_;
}

}  // namespace kosine
