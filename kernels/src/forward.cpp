#include "forward.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <variant>

#include "pooling.h"
#include "walk.h"

namespace kosine {

void Walk::walk() {
  for (const PackedStep& step : model_.steps) {
    std::visit([this](const auto& one) { take(one); }, step);
  }
  normalise_sentences();
}

void Walk::take(const packed::Embed& step) {
  const auto [begin, end] = own_rows();
  std::size_t row = 0;
  for (const Sentence& sentence : chunk_.sentences) {
    for (std::size_t i = 0; i < sentence.length; ++i, ++row) {
      if (row < begin || row >= end) continue;
      const std::size_t token = sentence.begin + i;
      const float* word = step.word + static_cast<std::size_t>(batch_.ids[token]) * step.width;
      const float* position =
          step.position +
          (model_.has_positions ? static_cast<std::size_t>(batch_.positions[token]) : 0) *
              step.width;
      float* x = work_.x.row(row);
      for (std::size_t j = 0; j < step.width; ++j) x[j] = word[j] + position[j];
    }
  }
  member_.meet();
}

void Walk::take(const packed::Norm& step) {
  const auto [begin, end] = own_rows();
  const Kernels& kernels = *step.rounding.kernels;
  kernels.layer_norm({
      .x = work_.x.row(begin),
      .ldx = work_.x.stride,
      .rows = end - begin,
      .width = step.norm.width,
      .gain = step.norm.gain,
      .bias = step.norm.bias,
      .eps = step.norm.eps,
      .rms = step.norm.rms,
      .keeps_x = step.keeps_x,
      .smooth = step.rounding.smooth,
      .rounded = work_.input.row(begin),
      .ldr = work_.input.stride / kernels.activation,
  });
  clear_padding(kernels, work_.input, step.norm.width, {begin, end});
  member_.meet();
}

void Walk::take(const packed::Project& step) {
  multiply(work_.input.data, work_.input.stride, step.linear, Epilogue::kStore, work_.x);
  member_.meet();
  round(step.rounding, work_.x, step.linear.columns, work_.input, own_rows());
  member_.meet();
}


void Walk::add_branch(const packed::RowNorm& norm) {
  const auto rows = own_rows();
  norm_rows(norm, work_.branch, rows.begin, rows.end - rows.begin, work_.x, true);
  member_.meet();
}

void Walk::norm_rows(const packed::RowNorm& norm, const Matrix<float>& x, std::size_t row,
                     std::size_t count, const Matrix<float>& out, bool adds) {
  model_.kernels.norm_rows({
      .x = x.row(row),
      .ldx = x.stride,
      .rows = count,
      .width = norm.width,
      .gain = norm.gain,
      .bias = norm.bias,
      .eps = norm.eps,
      .rms = norm.rms,
      .out = out.row(row),
      .ldo = out.stride,
      .adds = adds,
  });
}

// Pooling, the dense layers and normalising: each member for its share of the sentences.
void Walk::take(const packed::Pool& step) {
  const auto [begin, end] = own_sentences();
  std::size_t row = 0;
  for (std::size_t i = 0; i < end; ++i) {
    const Sentence& sentence = chunk_.sentences[i];
    if (i >= begin) {
      keep_states(sentence, row, step.width);
      const std::size_t skip =
          batch_.skip == nullptr ? 0 : static_cast<std::size_t>(batch_.skip[sentence.index]);
      float* out = pooled_.row(i);
      for (Pooling mode : step.modes) {
        pool_rows(work_.x.row(row), work_.x.stride, sentence.length, skip, step.width, mode, out);
        out += step.width;
      }
    }
    row += sentence.length;
  }
}

// What pooling reads, for callers who read it too.
void Walk::keep_states(const Sentence& sentence, std::size_t row, std::size_t width) {
  if (batch_.states == nullptr) return;
  for (std::size_t i = 0; i < sentence.length; ++i) {
    std::copy_n(work_.x.row(row + i), width, batch_.states + (sentence.begin + i) * width);
  }
}

void Walk::take(const packed::Dense& step) {
  const auto [begin, end] = own_sentences();
  apply_dense(step, model_.floats, pooled_, pooled_next_, begin, end);
  std::swap(pooled_, pooled_next_);
}

void Walk::normalise_sentences() {
  const auto [begin, end] = own_sentences();
  for (std::size_t i = begin; i < end; ++i) {
    const std::size_t index = chunk_.sentences[i].index;
    batch_.norms[index] =
        normalise_row(pooled_.row(i), model_.dim, batch_.vectors + index * model_.dim);
  }
}

void Walk::multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                    const Matrix<float>& out) {
  multiply(a, stride, linear, epilogue,
           ActivationMatrix{reinterpret_cast<char*>(out.data), out.stride * sizeof(float)},
           sizeof(float));
}

void Walk::multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                    const ActivationMatrix& out, std::size_t element) {
  for (std::size_t i = 0; i < row_blocks(); ++i) {
    const auto [begin, end] = row_block(i);
    multiply(a + begin * stride, stride, linear, epilogue, out.row(begin), out.stride, element,
             end - begin);
  }
}

void Walk::multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                    char* out, std::size_t out_stride, std::size_t element, std::size_t rows) {
  const Kernels& kernels = *linear.kernels;
  const auto [begin, end] = member_.share_of(linear.panels);
  kernels.gemm({
      .a = a,
      .lda = stride / kernels.activation,
      .rows = rows,
      .weight = linear.weight + begin * linear.panel_bytes,
      .bias = linear.bias + begin * kernels.panel,
      .depth = linear.depth,
      .panels = end - begin,
      .out = out + begin * kernels.panel * element,
      .ldo = out_stride / element,
      .epilogue = epilogue,
  });
}

// Of long texts as many rows at one time as stay in the L2 cache from panel to panel.
std::size_t Walk::row_blocks() const {
  const std::size_t rows = model_.kernels.chunk_rows;
  return chunk_.rows > 2 * rows ? chunk_.rows / rows : 1;
}

Member::Range Walk::row_block(std::size_t i) const {
  return {chunk_.rows * i / row_blocks(), chunk_.rows * (i + 1) / row_blocks()};
}

void Walk::round(const Rounding& rounding, const Matrix<float>& x, std::size_t width,
                 const ActivationMatrix& out, Range rows) {
  const Kernels& kernels = *rounding.kernels;
  kernels.round({
      .x = x.row(rows.begin),
      .ldx = x.stride,
      .rows = rows.end - rows.begin,
      .width = width,
      .smooth = rounding.smooth,
      .out = out.row(rows.begin),
      .ldo = out.stride / kernels.activation,
  });
  clear_padding(kernels, out, width, rows);
}

// Products read whole steps of the depth, and nothing else writes the columns that pad them.
void Walk::clear_padding(const Kernels& kernels, const ActivationMatrix& matrix, std::size_t width,
                         Range rows) {
  if (kernels.quantized) return;  // rounding fills whole rows
  const std::size_t bytes =
      (round_up(width, kernels.k_step) - width) * kernels.activation;
  if (bytes == 0) return;
  for (std::size_t i = rows.begin; i < rows.end; ++i) {
    std::memset(matrix.row(i) + width * kernels.activation, 0, bytes);
  }
}

void walk_steps(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& work,
                const Member& member) {
  Walk(model, batch, chunk, work, member).walk();
}

}  // namespace kosine
