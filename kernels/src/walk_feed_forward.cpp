// The feed-forward's step of a walk.
#include <algorithm>

#include "walk.h"

namespace kosine {
namespace {

Linear slice_of(const Linear& whole, const packed::FeedForward& step, std::size_t slice) {
  const std::size_t begin = slice * step.slice_panels;
  Linear part = whole;
  part.weight += begin * part.panel_bytes;
  part.bias += begin * part.kernels->panel;
  part.panels = std::min(step.slice_panels, part.panels - begin);
  return part;
}

Rounding slice_rounding(const packed::FeedForward& step, std::size_t slice) {
  Rounding part = step.rounding;
  if (part.smooth != nullptr) part.smooth += slice * step.slice_panels * part.kernels->panel;
  return part;
}

}  // namespace

// As many rows at one time as stay in the cache, from the first product to the last. Alone, a thread
// takes one slice of the feed-forward up and down before the next; a team would have to meet between
// slices, and rather goes all the way up first. The sums are the same: slice after slice is added to
// x either way.
void Walk::take(const packed::FeedForward& step) {
  for (std::size_t i = 0; i < row_blocks(); ++i) {
    if (member_.size == 1) {
      take_slices(step, row_block(i));
    } else {
      take_whole(step, row_block(i));
    }
  }
  if (step.norm.has_value()) add_branch(*step.norm);
}

void Walk::take_slices(const packed::FeedForward& step, Range rows) {
  for (std::size_t i = 0; i < step.down.size(); ++i) {
    const Linear up = slice_of(step.up, step, i);
    inner_product(up, step.activation, rows);
    if (step.gate.has_value()) inner_product(slice_of(*step.gate, step, i), Epilogue::kGate, rows);
    if (up.kernels->quantized) {
      round(slice_rounding(step, i), work_.staged, up.panels * up.kernels->panel, work_.inner,
            {0, rows.end - rows.begin});
    }
    multiply_down(step, i, work_.inner.data, rows);
  }
}

void Walk::take_whole(const packed::FeedForward& step, Range rows) {
  const Kernels& kernels = *step.rounding.kernels;
  const std::size_t slices = step.down.size();
  const std::size_t columns = step.slice_panels * kernels.panel;
  const std::size_t slice_bytes = kernels.row_elements(columns) * kernels.activation;
  inner_product(step.up, step.activation, rows);
  // A member's panels of both products are the same.
  if (step.gate.has_value()) inner_product(*step.gate, Epilogue::kGate, rows);
  member_.meet();
  for (std::size_t i = 0; kernels.quantized && i < slices; ++i) {
    const Matrix<float> floats{work_.staged.data + i * columns, work_.staged.stride};
    const ActivationMatrix inner{work_.inner.data + i * slice_bytes, work_.inner.stride};
    round(slice_rounding(step, i), floats, slice_of(step.up, step, i).panels * kernels.panel, inner,
          member_.share_of(rows.end - rows.begin));
  }
  if (kernels.quantized) member_.meet();
  for (std::size_t i = 0; i < slices; ++i) {
    multiply_down(step, i, work_.inner.data + i * slice_bytes, rows);
  }
  member_.meet();
}

// `rows` of x, to the rows of `inner`, or `staged`, from the first on.
void Walk::inner_product(const Linear& linear, Epilogue epilogue, Range rows) {
  const Kernels& kernels = *linear.kernels;
  const char* input = work_.input.row(rows.begin);
  const std::size_t count = rows.end - rows.begin;
  if (kernels.quantized) {
    multiply(input, work_.input.stride, linear, epilogue,
             reinterpret_cast<char*>(work_.staged.data), work_.staged.stride * sizeof(float),
             sizeof(float), count);
  } else {
    multiply(input, work_.input.stride, linear, epilogue, work_.inner.data, work_.inner.stride,
             kernels.activation, count);
  }
}

// Added to `rows` of x, or of those that are normed before.
void Walk::multiply_down(const packed::FeedForward& step, std::size_t slice, const char* inner,
                         Range rows) {
  const bool first = step.norm.has_value() && slice == 0;
  const Matrix<float>& out = step.norm.has_value() ? work_.branch : work_.x;
  multiply(inner, work_.inner.stride, step.down[slice], first ? Epilogue::kStore : Epilogue::kAdd,
           reinterpret_cast<char*>(out.row(rows.begin)), out.stride * sizeof(float), sizeof(float),
           rows.end - rows.begin);
}

}  // namespace kosine
