#include "workspace.h"

namespace kosine {
namespace {

// Elements between rows: whole cache lines, and an odd number of them, so that the rows of a
// tile do not all fall into the same few sets of the L1 cache.
std::size_t stride_of(std::size_t columns, std::size_t element) {
  const std::size_t lines = round_up(columns * element, kAlignment) / kAlignment;
  return (lines | 1) * kAlignment / element;
}

}  // namespace

void Workspace::prepare(const Model& model, const Chunk& chunk, std::size_t threads) {
  const Kernels& kernels = model.kernels;
  const Model::Widths& widths = model.widths;
  const std::size_t rows = chunk.rows;
  const std::size_t sentences = chunk.sentences.size();
  scratch_size_ = round_up(kernels.attention_scratch(chunk.longest, widths.head),
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
  const auto activations = [&](ActivationMatrix& matrix, std::size_t count, std::size_t width) {
    matrix.stride = stride_of(width, 1);
    matrix.data = take(count, matrix.stride, 1);
  };
  const auto all = [&] {
    floats(x, rows, widths.x);
    activations(input, rows, widths.input);
    activations(qkv, rows, widths.qkv);
    floats(branch, rows, widths.branch);
    activations(context, rows, widths.context);
    activations(inner, rows, threads == 1 ? widths.slice : widths.inner);
    floats(staged, rows, threads == 1 ? widths.staged_slice : widths.staged);
    floats(pooled, sentences, widths.pooled);
    floats(pooled_next, sentences, widths.pooled);
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
}

std::unique_ptr<Workspace> WorkspacePool::take() {
  const std::lock_guard lock(mutex_);
  free_.reserve(free_.size() + lent_ + 1);  // so that `put` never has to allocate
  std::unique_ptr<Workspace> workspace;
  if (free_.empty()) {
    workspace = std::make_unique<Workspace>();
  } else {
    workspace = std::move(free_.back());
    free_.pop_back();
  }
  ++lent_;
  return workspace;
}

void WorkspacePool::put(std::unique_ptr<Workspace> workspace) noexcept {
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(workspace));
  --lent_;
}

}  // namespace kosine
