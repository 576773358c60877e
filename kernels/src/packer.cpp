#include "packer.h"

#include <cmath>
#include <cstring>
#include <variant>

namespace kosine {

void Model::Packer::pack(const std::vector<Step>& steps) {
  all(steps);
  model_.arena_ = Arena(bytes_, model_.guard);
  packing_ = true;
  all(steps);
  model_.arena_.seal();
}

void Model::Packer::all(const std::vector<Step>& steps) {
  model_.steps.clear();
  model_.max_length = kMaxSize;
  turns_.clear();
  distances_.clear();
  state_ = State::kNothing;
  for (std::size_t i = 0; i < steps.size(); ++i) {
    next_ = i + 1 < steps.size() ? &steps[i + 1] : nullptr;
    std::visit([this](const auto& one) { model_.steps.emplace_back(packed_step(one)); },
               steps[i]);
  }
  for (const std::string& name : bytes_only_) {
    if (used_.count(name) == 0) {
      reject("bytes_only names " + name, "a product of a layer is needed");
    }
  }
  if (state_ != State::kSentences) {
    reject("steps end after " + std::to_string(steps.size()), "Pool must be among them");
  }
  model_.dim = width_;
}

void Model::Packer::expect(const char* step, std::initializer_list<State> allowed) {
  for (State state : allowed) {
    if (state == state_) return;
  }
  reject("steps[" + std::to_string(model_.steps.size()) + "] is " + step,
         "Embed must be first, Pool once behind it, and Dense behind Pool; Attention and "
         "FeedForward follow a Norm or a Linear");
}

void Model::Packer::set_row_width(std::size_t columns, const std::string& name) {
  if (columns % kLaneMultiple != 0) {
    reject("tensor " + name + ".weight has " + std::to_string(columns) + " columns",
           "a multiple of 16 is needed");
  }
  width_ = columns;
  // Products write whole panels into x.
  keep_most(model_.widths.x, round_up(columns, model_.kernels.panel));
}

const Kernels& Model::Packer::kernels_of(const std::string& name) {
  used_.insert(name);
  return bytes_only_.count(name) == 0 ? model_.kernels : model_.bytes_kernels;
}

std::size_t Model::Packer::row_bytes(const Kernels& kernels, std::size_t width) {
  return kernels.planes * kernels.row_elements(width) * kernels.activation;
}

Rounding Model::Packer::rounding_for(const std::string& name, const Kernels& kernels, std::size_t
                                     width) {
  if (!kernels.quantized || !has(tensors_, name + ".smooth")) return {&kernels, nullptr};
  const Tensor& smooth = of_shape(tensors_, name + ".smooth", {width});
  return {&kernels, padded(smooth.floats(), width, round_up(width, kernels.panel))};
}

Rounding Model::Packer::rounding_of_x() {
  const std::string* name = nullptr;
  if (next_ != nullptr) {
    if (const auto* linear = std::get_if<step::Linear>(next_)) name = &linear->name;
    if (const auto* attention = std::get_if<step::Attention>(next_)) name = &attention->qkv;
    if (const auto* feed_forward = std::get_if<step::FeedForward>(next_)) {
      name = &feed_forward->up;
    }
  }
  if (name == nullptr) return {model_.kernels.quantized ? &model_.floats : &model_.kernels, nullptr};
  const Kernels& kernels = kernels_of(*name);
  keep_most(model_.widths.input, row_bytes(kernels, width_));
  return rounding_for(*name, kernels, width_);
}

packed::Embed Model::Packer::packed_step(const step::Embed& step) {
  expect("Embed", {State::kNothing});
  const auto& shape = of_rank(tensors_, step.word + ".weight", 2).shape;
  const std::size_t width = shape[1];
  const Tensor& words = of_shape(tensors_, step.word + ".weight", shape);
  model_.has_positions = step.position.has_value();
  std::size_t rows = 1;
  const float* places = nullptr;
  if (step.position.has_value()) {
    const std::string name = *step.position + ".weight";
    rows = of_rank(tensors_, name, 2).shape[0];
    places = of_shape(tensors_, name, {rows, width}).floats();
  }
  const float* type = nullptr;
  if (step.token_type.has_value()) {
    const std::string name = *step.token_type + ".weight";
    const Tensor& types = of_rank(tensors_, name, 2);
    type = of_shape(tensors_, name, {types.shape[0], width}).floats();
  }
  set_row_width(width, step.word);
  state_ = State::kRows;
  model_.vocab_size = words.shape[0];
  model_.num_positions = rows;
  auto* word = take<float>(model_.vocab_size * width);
  auto* position = take<float>(rows * width);
  if (packing_) {
    std::memcpy(word, words.floats(), model_.vocab_size * width * sizeof(float));
    for (std::size_t i = 0; i < rows * width; ++i) {
      const float place = places == nullptr ? 0.0f : places[i];
      position[i] = place + (type == nullptr ? 0.0f : type[i % width]);
    }
  }
  return {word, position, width};
}

packed::Norm Model::Packer::packed_step(const step::Norm& step) {
  expect("Norm", {State::kRows, State::kRowsAndInput});
  const packed::RowNorm norm = row_norm(step, width_);
  state_ = State::kRowsAndInput;
  const Rounding rounding = rounding_of_x();
  keep_most(model_.widths.input, row_bytes(*rounding.kernels, width_));
  return {norm, step.keeps_x, rounding};
}

packed::RowNorm Model::Packer::row_norm(const step::Norm& step, std::size_t width) {
  if (!(step.eps > 0) || !std::isfinite(step.eps)) {
    reject("eps of " + step.name + " is " + std::to_string(step.eps),
           "a positive number is needed");
  }
  const Tensor& gain = of_shape(tensors_, step.name + ".weight", {width});
  const float* bias =
      step.bias ? of_shape(tensors_, step.name + ".bias", {width}).floats() : nullptr;
  const float* gains = padded(gain.floats(), width, width);
  return {gains, padded(bias, width, width), step.eps, step.rms, width};
}

std::optional<packed::RowNorm> Model::Packer::row_norm(const std::optional<step::Norm>& step,
                                                       std::size_t width) {
  if (!step.has_value()) return std::nullopt;
  return row_norm(*step, width);
}

std::optional<packed::RowNorm> Model::Packer::branch_norm(const std::optional<step::Norm>& step) {
  if (step.has_value()) {
    keep_most(model_.widths.branch, round_up(width_, model_.kernels.panel));
  }
  return row_norm(step, width_);
}

packed::Project Model::Packer::packed_step(const step::Linear& step) {
  expect("Linear", {State::kRowsAndInput});
  const std::size_t columns = of_rank(tensors_, step.name + ".weight", 2).shape[1];
  const Linear linear = packed_linear(kernels_of(step.name), step.name, width_, columns);
  set_row_width(columns, step.name);
  const Rounding rounding = rounding_of_x();
  keep_most(model_.widths.input, row_bytes(*rounding.kernels, width_));
  return {linear, rounding};
}

packed::FeedForward Model::Packer::packed_step(const step::FeedForward& step) {
  expect("FeedForward", {State::kRowsAndInput});
  const Kernels& up = kernels_of(step.up);
  const Kernels& kernels = kernels_of(step.down);
  const std::size_t inner = of_rank(tensors_, step.up + ".weight", 2).shape[1];
  packed::FeedForward feed_forward;
  feed_forward.up = packed_linear(up, step.up, width_, inner, step.bias);
  if (step.gate.has_value()) {
    if (&kernels_of(*step.gate) != &up) {
      reject("one of " + step.up + " and " + *step.gate + " is to have weights of bytes only",
             "both or none can, since they read the same");
    }
    feed_forward.gate = packed_linear(up, *step.gate, width_, inner, step.bias);
  }
  const std::size_t panels = feed_forward.up.panels;
  const std::size_t columns = kernels.slice_columns(inner);
  feed_forward.slice_panels = columns / kernels.panel;
  feed_forward.down = packed_slices(kernels, step.down, inner, width_, columns,
                                     step.bias);
  feed_forward.rounding = rounding_for(step.down, kernels, inner);
  feed_forward.activation = epilogue_of(step.activation);
  feed_forward.norm = branch_norm(step.norm);
  const std::size_t slice_bytes = row_bytes(kernels, columns);
  keep_most(model_.widths.slice, slice_bytes);
  keep_most(model_.widths.inner, slice_bytes * feed_forward.down.size());
  if (kernels.quantized) {
    keep_most(model_.widths.staged_slice, columns);
    keep_most(model_.widths.staged, panels * kernels.panel);
  }
  state_ = State::kRows;
  return feed_forward;
}

Epilogue Model::Packer::epilogue_of(InnerActivation activation) {
  switch (activation) {
    case InnerActivation::kGelu: return Epilogue::kGelu;
    case InnerActivation::kGeluTanh: return Epilogue::kGeluTanh;
    case InnerActivation::kSilu: return Epilogue::kSilu;
  }
  return Epilogue::kGelu;
}

packed::Pool Model::Packer::packed_step(const step::Pool& step) {
  expect("Pool", {State::kRows, State::kRowsAndInput});
  state_ = State::kSentences;
  if (step.modes.empty()) reject("Pool has no mode", "at least one is needed");
  const std::size_t width = model_.hidden = width_;
  width_ *= step.modes.size();
  keep_most(model_.widths.pooled, width_);
  return {step.modes, width};
}

packed::Dense Model::Packer::packed_step(const step::Dense& step) {
  expect("Dense", {State::kSentences});
  const std::size_t columns = of_rank(tensors_, step.name + ".weight", 2).shape[1];
  if (step.use_residual && columns != width_) {
    reject(step.name + " has a residual around " + std::to_string(width_) + " -> " +
               std::to_string(columns) + " columns",
           "equal sizes are needed");
  }
  const Linear linear = packed_linear(model_.floats, step.name, width_, columns, step.bias);
  keep_most(model_.widths.pooled, linear.panels * model_.floats.panel);
  width_ = columns;
  return {linear, step.activation, step.use_residual};
}

}  // namespace kosine
