// Attention's step of a walk.
#include <algorithm>
#include <numeric>

#include "walk.h"

namespace kosine {

void Walk::take(const packed::Attention& step) {
  if (step.changes_heads()) {
    multiply(work_.input.data, work_.input.stride, step.qkv, Epilogue::kStore, unchanged_heads());
    member_.meet();
    if (member_.size != 1) {
      change_heads(step);
      member_.meet();
      round_heads(step, own_rows());
      member_.meet();
    }
  } else {
    multiply(work_.input.data, work_.input.stride, step.qkv, Epilogue::kHeads, work_.qkv,
             model_.kernels.head);
    member_.meet();
  }
  attend(step);
  member_.meet();
  const std::size_t width = step.num_heads * step.head_size;
  if (model_.kernels.quantized) {
    if (member_.size != 1) round(step.rounding, work_.staged, width, work_.context, own_rows());
  } else {
    clear_padding(model_.kernels, work_.context, width, own_rows());
  }
  member_.meet();
  const bool normed = step.norm.has_value();
  multiply(work_.context.data, work_.context.stride, step.output,
           normed ? Epilogue::kStore : Epilogue::kAdd, normed ? work_.branch : work_.x);
  member_.meet();
  if (normed) add_branch(*step.norm);
}

// A head of k may belong to several of q, so a team changes all before any of them is read.
void Walk::change_heads(const packed::Attention& step) {
  std::size_t item = 0;
  std::size_t row = 0;
  for (const Sentence& sentence : chunk_.sentences) {
    for (std::size_t head = 0; head < step.num_heads + step.num_key_value_heads; ++head, ++item) {
      if (item % member_.size == member_.rank) change_head(step, row, sentence.length, head);
    }
    row += sentence.length;
  }
}

// The heads of q and then those of k, normed and turned by their place.
void Walk::change_head(const packed::Attention& step, std::size_t row, std::size_t length,
                       std::size_t head) {
  const auto& norm = head < step.num_heads ? step.query_norm : step.key_norm;
  const Matrix<float> qkv = unchanged_heads();
  const Matrix<float> x{qkv.data + head * step.head_size, qkv.stride};
  if (norm.has_value()) norm_rows(*norm, x, row, length, x, false);
  if (step.cos == nullptr) return;
  model_.kernels.turn({
      .x = x.row(row),
      .ld = x.stride,
      .length = length,
      .head_size = step.head_size,
      .cos = step.cos,
      .sin = step.sin,
  });
}

Matrix<float> Walk::unchanged_heads() const {
  return {reinterpret_cast<float*>(work_.qkv.data), work_.qkv.stride / sizeof(float)};
}

// Whole rows: what a row's heads become lies where others of it were.
void Walk::round_heads(const packed::Attention& step, Range rows) {
  const Matrix<float> qkv = unchanged_heads();
  model_.kernels.round_heads({
      .x = qkv.row(rows.begin),
      .ld = qkv.stride,
      .rows = rows.end - rows.begin,
      .width = (step.num_heads + 2 * step.num_key_value_heads) * step.head_size,
  });
}

// A team shares out whole heads, and the rows of long sentences where those do not come out even.
std::size_t Walk::parts_of(std::size_t length, std::size_t heads) const {
  constexpr std::size_t kFewestRows = 128;  // below, preparing the keys takes too much of a part
  const std::size_t even = member_.size / std::gcd(heads, member_.size);
  return std::clamp<std::size_t>(length / kFewestRows, 1, even);
}

// Each member takes parts of heads of sentences.
void Walk::attend(const packed::Attention& step) {
  const Kernels& kernels = model_.kernels;
  const std::size_t width = step.num_heads * step.head_size;
  const std::size_t shared_width = step.num_key_value_heads * step.head_size;
  const std::size_t sharers = step.num_heads / step.num_key_value_heads;
  std::size_t item = 0;
  std::size_t row = 0;
  for (const Sentence& sentence : chunk_.sentences) {
    if (member_.size == 1 && step.changes_heads()) {
      const std::size_t heads = step.num_heads + step.num_key_value_heads;
      for (std::size_t head = 0; head < heads; ++head) {
        change_head(step, row, sentence.length, head);
      }
      round_heads(step, {row, row + sentence.length});
    }
    const std::size_t parts = parts_of(sentence.length, step.num_heads);
    for (std::size_t i = 0; i < step.num_heads * parts; ++i, ++item) {
      if (item % member_.size != member_.rank) continue;
      const std::size_t head = i / parts;
      const char* q = work_.qkv.row(row) + head * step.head_size * kernels.head;
      const char* k = work_.qkv.row(row) + (width + head / sharers * step.head_size) * kernels.head;
      void* out = kernels.quantized
                      ? static_cast<void*>(work_.staged.row(row) + head * step.head_size)
                      : work_.context.row(row) + head * step.head_size * kernels.activation;
      kernels.attention({
          .q = q,
          .k = k,
          .v = k + shared_width * kernels.head,
          .ld = work_.qkv.stride / kernels.head,
          .length = sentence.length,
          .head_size = step.head_size,
          .behind = step.behind,
          .ahead = step.ahead,
          .distances = step.distances == nullptr
                           ? nullptr
                           : step.distances + head * (2 * step.reach + 1),
          .reach = step.reach,
          .part = i % parts,
          .parts = parts,
          .out = out,
          .ldo = kernels.quantized ? work_.staged.stride
                                   : work_.context.stride / kernels.activation,
          .scratch = work_.scratch(member_.rank),
      });
    }
    // Alone, while the sentence is in the cache.
    if (kernels.quantized && member_.size == 1) {
      round(step.rounding, work_.staged, width, work_.context, {row, row + sentence.length});
    }
    row += sentence.length;
  }
}

}  // namespace kosine
