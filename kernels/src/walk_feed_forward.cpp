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

// Alone, a thread takes one slice of the feed-forward up and down before the next; a team
// would have to meet between slices, and rather goes all the way up first. The sums are the
// same: slice after slice is added to x either way.
void Walk::take(const packed::FeedForward& step) {
  const bool staged = step.up.kernels->staged;
  const std::size_t slices = step.down.size();
  const std::size_t panel = step.up.kernels->panel;
  if (member_.size == 1) {
    for (std::size_t i = 0; i < slices; ++i) {
      const Linear up = slice_of(step.up, step, i);
      inner_product(up, step.activation, staged);
      if (step.gate.has_value()) {
        inner_product(slice_of(*step.gate, step, i), Epilogue::kGate, staged);
      }
      if (staged) {
        round(slice_rounding(step, i), work_.staged, up.panels * panel, work_.inner, own_rows());
      }
      multiply_down(step, i, work_.inner.data);
    }
    if (step.norm.has_value()) add_branch(*step.norm);
    return;
  }
  inner_product(step.up, step.activation, staged);
  // A member's panels of both products are the same.
  if (step.gate.has_value()) inner_product(*step.gate, Epilogue::kGate, staged);
  member_.meet();
  const std::size_t columns = step.slice_panels * panel;
  const std::size_t slice_bytes =
      step.up.kernels->row_elements(columns) * step.up.kernels->activation;
  for (std::size_t i = 0; staged && i < slices; ++i) {
    const Matrix<float> floats{work_.staged.data + i * columns, work_.staged.stride};
    const ActivationMatrix inner{work_.inner.data + i * slice_bytes, work_.inner.stride};
    round(slice_rounding(step, i), floats, slice_of(step.up, step, i).panels * panel, inner, own_rows());
  }
  if (staged) member_.meet();
  for (std::size_t i = 0; i < slices; ++i) {
    multiply_down(step, i, work_.inner.data + i * slice_bytes);
  }
  member_.meet();
  if (step.norm.has_value()) add_branch(*step.norm);
}

// Added to x, or to the rows that are normed before.
void Walk::multiply_down(const packed::FeedForward& step, std::size_t slice, const char* inner) {
  const bool first = step.norm.has_value() && slice == 0;
  multiply(inner, work_.inner.stride, step.down[slice], first ? Epilogue::kStore : Epilogue::kAdd,
           step.norm.has_value() ? work_.branch : work_.x);
}

void Walk::inner_product(const Linear& linear, Epilogue epilogue, bool staged) {
  const char* input = work_.input.data;
  if (staged) {
    multiply(input, work_.input.stride, linear, epilogue, work_.staged);
  } else {
    multiply(input, work_.input.stride, linear, epilogue, work_.inner.data, work_.inner.stride,
             linear.kernels->activation);
  }
}

}  // namespace kosine
