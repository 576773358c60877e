#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <variant>

namespace kosine {
namespace {

constexpr std::size_t kLaneMultiple = 16;  // what every table's vectors divide
constexpr std::size_t kMaxHeadSize = 256;
constexpr std::size_t kMaxSize = std::size_t{1} << 24;

[[noreturn]] void refuse(const std::string& problem, const std::string& limit) {
  throw std::invalid_argument(problem + "; " + limit + "; export the model again");
}

std::string text_of(const std::vector<std::size_t>& shape) {
  std::string text = "(";
  for (std::size_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

const Tensor& of_rank(const Tensors& tensors, const std::string& name, std::size_t rank) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) refuse("tensor " + name + " is missing", "every tensor is needed");
  const auto& shape = found->second.shape;
  if (shape.size() != rank) {
    refuse("tensor " + name + " has shape " + text_of(shape),
           std::to_string(rank) + " dimensions are needed");
  }
  for (std::size_t size : shape) {
    if (size == 0 || size > kMaxSize) {
      refuse("tensor " + name + " has shape " + text_of(shape),
             "sizes go from 1 to " + std::to_string(kMaxSize));
    }
  }
  return found->second;
}

bool has(const Tensors& tensors, const std::string& name) { return tensors.count(name) != 0; }

const Tensor& of_shape(const Tensors& tensors, const std::string& name,
                       const std::vector<std::size_t>& shape, bool bytes = false) {
  const Tensor& tensor = of_rank(tensors, name, shape.size());
  if (tensor.bytes != bytes) {
    refuse("tensor " + name + " is " + (tensor.bytes ? "int8" : "float32"),
           std::string(bytes ? "int8" : "float32") + " is needed");
  }
  if (tensor.shape != shape) {
    refuse("tensor " + name + " has shape " + text_of(tensor.shape), text_of(shape) + " is needed");
  }
  return tensor;
}

}  // namespace

Pooling pooling_named(const std::string& name) {
  if (name == "mean") return Pooling::kMean;
  if (name == "cls") return Pooling::kCls;
  if (name == "max") return Pooling::kMax;
  if (name == "mean_sqrt_len_tokens") return Pooling::kMeanSqrtLength;
  if (name == "weightedmean") return Pooling::kWeightedMean;
  if (name == "lasttoken") return Pooling::kLast;
  throw std::invalid_argument("unknown pooling '" + name + "'; known: mean, cls, max, "
                              "mean_sqrt_len_tokens, weightedmean, lasttoken");
}

Activation activation_named(const std::string& name) {
  if (name == "identity") return Activation::kIdentity;
  if (name == "tanh") return Activation::kTanh;
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "sigmoid") return Activation::kSigmoid;
  throw std::invalid_argument("unknown activation '" + name +
                              "'; known: identity, tanh, relu, gelu, sigmoid");
}

InnerActivation inner_activation_named(const std::string& name) {
  if (name == "gelu") return InnerActivation::kGelu;
  if (name == "gelu_tanh") return InnerActivation::kGeluTanh;
  if (name == "silu") return InnerActivation::kSilu;
  throw std::invalid_argument("unknown activation '" + name +
                              "' of a feed-forward; known: gelu, gelu_tanh, silu");
}

// Goes over the steps twice: first it adds up what packing them will take, then, with an arena
// of that size, it packs them. Both rounds run the same code, so they cannot disagree.
class Model::Packer {
 public:
  Packer(Model& model, const Tensors& tensors, const std::set<std::string>& bytes_only)
      : model_(model), tensors_(tensors), bytes_only_(bytes_only) {}

  void pack(const std::vector<Step>& steps) {
    all(steps);
    model_.arena_ = Arena(bytes_, model_.guard);
    packing_ = true;
    all(steps);
    model_.arena_.seal();
  }

 private:
  // Where a step may stand: what the steps before it have left behind.
  enum class State { kNothing, kRows, kRowsAndInput, kSentences };

  template <class T>
  T* take(std::size_t count) {
    if (packing_) return model_.arena_.take<T>(count);
    bytes_ += round_up(count * sizeof(T), kAlignment);
    return nullptr;
  }

  void all(const std::vector<Step>& steps) {
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
      if (used_.count(name) == 0) refuse("bytes_only names " + name, "a product of a layer is needed");
    }
    if (state_ != State::kSentences) {
      refuse("steps end after " + std::to_string(steps.size()), "Pool must be among them");
    }
    model_.dim = width_;
  }

  void expect(const char* step, std::initializer_list<State> allowed) {
    for (State state : allowed) {
      if (state == state_) return;
    }
    refuse("steps[" + std::to_string(model_.steps.size()) + "] is " + step,
           "Embed must be first, Pool once behind it, and Dense behind Pool; Attention and "
           "FeedForward follow a Norm or a Linear");
  }

  // The width of x from here on.
  void set_row_width(std::size_t columns, const std::string& name) {
    if (columns % kLaneMultiple != 0) {
      refuse("tensor " + name + ".weight has " + std::to_string(columns) + " columns",
             "a multiple of 16 is needed");
    }
    width_ = columns;
    // Products of either table write whole panels into x.
    const std::size_t panel = std::max(model_.kernels.panel, model_.bytes_kernels.panel);
    keep_most(model_.widths.x, round_up(columns, panel));
  }

  // The table of a product of a layer.
  const Kernels& kernels_of(const std::string& name) {
    used_.insert(name);
    return bytes_only_.count(name) == 0 ? model_.kernels : model_.bytes_kernels;
  }

  static std::size_t row_bytes(const Kernels& kernels, std::size_t width) {
    return kernels.row_elements(width) * kernels.activation;
  }

  // How rows of `width` become what the product `name` reads.
  Rounding rounding_for(const std::string& name, const Kernels& kernels, std::size_t width) {
    if (!kernels.staged || !has(tensors_, name + ".smooth")) return {&kernels, nullptr};
    const Tensor& smooth = of_shape(tensors_, name + ".smooth", {width});
    return {&kernels, padded(smooth.floats(), width, round_up(width, kernels.panel))};
  }

  // The same for x and the step after this one; where that reads no activations, any will do.
  Rounding rounding_of_x() {
    const std::string* name = nullptr;
    if (next_ != nullptr) {
      if (const auto* linear = std::get_if<step::Linear>(next_)) name = &linear->name;
      if (const auto* attention = std::get_if<step::Attention>(next_)) name = &attention->qkv;
      if (const auto* feed_forward = std::get_if<step::FeedForward>(next_)) {
        name = &feed_forward->up;
      }
    }
    if (name == nullptr) return {model_.kernels.staged ? &model_.floats : &model_.kernels, nullptr};
    const auto* feed_forward = std::get_if<step::FeedForward>(next_);
    const Kernels& kernels = feed_forward != nullptr ? kernels_of(*feed_forward) : kernels_of(*name);
    keep_most(model_.widths.input, row_bytes(kernels, width_));
    return rounding_for(*name, kernels, width_);
  }

  const Kernels& kernels_of(const step::FeedForward& step) {
    const Kernels& up = kernels_of(step.up);
    if (&kernels_of(step.down) == &up) return up;
    refuse("one of " + step.up + " and " + step.down + " is to have weights of bytes only",
           "both or none can");
  }

  static void keep_most(std::size_t& most, std::size_t value) { most = std::max(most, value); }

  packed::Embed packed_step(const step::Embed& step) {
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

  packed::Norm packed_step(const step::Norm& step) {
    expect("Norm", {State::kRows, State::kRowsAndInput});
    const packed::RowNorm norm = row_norm(step, width_);
    state_ = State::kRowsAndInput;
    const Rounding rounding = rounding_of_x();
    keep_most(model_.widths.input, row_bytes(*rounding.kernels, width_));
    return {norm, step.keeps_x, rounding};
  }

  packed::RowNorm row_norm(const step::Norm& step, std::size_t width) {
    if (!(step.eps > 0) || !std::isfinite(step.eps)) {
      refuse("eps of " + step.name + " is " + std::to_string(step.eps),
             "a positive number is needed");
    }
    const Tensor& gain = of_shape(tensors_, step.name + ".weight", {width});
    const float* bias =
        step.bias ? of_shape(tensors_, step.name + ".bias", {width}).floats() : nullptr;
    const float* gains = padded(gain.floats(), width, width);
    return {gains, padded(bias, width, width), step.eps, step.rms, width};
  }

  std::optional<packed::RowNorm> row_norm(const std::optional<step::Norm>& step,
                                          std::size_t width) {
    if (!step.has_value()) return std::nullopt;
    return row_norm(*step, width);
  }

  // Of what is added to x; it takes shape in rows of its own.
  std::optional<packed::RowNorm> branch_norm(const std::optional<step::Norm>& step) {
    if (step.has_value()) {
      keep_most(model_.widths.branch, round_up(width_, std::max(model_.kernels.panel,
                                                                model_.bytes_kernels.panel)));
    }
    return row_norm(step, width_);
  }

  packed::Project packed_step(const step::Linear& step) {
    expect("Linear", {State::kRowsAndInput});
    const std::size_t columns = of_rank(tensors_, step.name + ".weight", 2).shape[1];
    const Linear linear = packed_linear(kernels_of(step.name), step.name, width_, columns);
    set_row_width(columns, step.name);
    const Rounding rounding = rounding_of_x();
    keep_most(model_.widths.input, row_bytes(*rounding.kernels, width_));
    return {linear, rounding};
  }

  packed::Attention packed_step(const step::Attention& step) {
    expect("Attention", {State::kRowsAndInput});
    if (step.num_heads == 0 || step.num_heads > kMaxSize) {
      refuse("num_heads is " + std::to_string(step.num_heads), "at least 1 is needed");
    }
    if (step.head_size == 0 || step.head_size % kLaneMultiple != 0 ||
        step.head_size > kMaxHeadSize) {
      refuse("the head size is " + std::to_string(step.head_size),
             "a multiple of 16 up to 256 is needed");
    }
    const std::size_t shared = step.num_key_value_heads.value_or(step.num_heads);
    if (shared == 0 || step.num_heads % shared != 0) {
      refuse("num_key_value_heads is " + std::to_string(shared),
             "a divisor of the " + std::to_string(step.num_heads) + " heads is needed");
    }
    const std::size_t width = step.num_heads * step.head_size;
    packed::Attention attention;
    attention.num_heads = step.num_heads;
    attention.num_key_value_heads = shared;
    attention.head_size = step.head_size;
    attention.qkv = packed_linear(kernels_of(step.qkv), step.qkv, width_,
                                  width + 2 * shared * step.head_size, step.bias);
    attention.output = packed_linear(kernels_of(step.output), step.output, width, width_,
                                     step.bias);
    const Kernels& output = *attention.output.kernels;
    attention.rounding = rounding_for(step.output, output, width);
    keep_most(model_.widths.qkv, attention.qkv.panels * attention.qkv.kernels->panel);
    keep_most(model_.widths.context, row_bytes(output, width));
    std::tie(attention.cos, attention.sin) = turns(step);
    attention.query_norm = row_norm(step.query_norm, step.head_size);
    attention.key_norm = row_norm(step.key_norm, step.head_size);
    attention.norm = branch_norm(step.norm);
    attention.behind = std::min(step.window.value_or(kMaxSize), kMaxSize);
    attention.ahead = step.causal ? 0 : attention.behind;
    keep_most(model_.widths.head, step.head_size);
    if (model_.kernels.staged) {
      keep_most(model_.widths.staged_slice, width);
      keep_most(model_.widths.staged, width);
    }
    state_ = State::kRows;
    attention.distances = distances(step);
    attention.reach = step.distances.has_value() ? step.distances->buckets.size() / 2 : 0;
    return attention;
  }

  // What heads add by distance, shared by the layers that read the same array.
  const float* distances(const step::Attention& step) {
    if (!step.distances.has_value()) return nullptr;
    const auto& [name, buckets] = *step.distances;
    const std::size_t rows = of_rank(tensors_, name + ".weight", 2).shape[0];
    const Tensor& table = of_shape(tensors_, name + ".weight", {rows, step.num_heads});
    if (buckets.size() % 2 == 0 || buckets.size() > kMaxSize ||
        *std::max_element(buckets.begin(), buckets.end()) >= rows) {
      refuse("the buckets of " + name + " are " + std::to_string(buckets.size()),
             "an odd number of rows of its weight is needed");
    }
    const auto [found, is_new] = distances_.try_emplace(step.distances->name);
    if (!is_new) return found->second;
    auto* to = take<float>(step.num_heads * buckets.size());
    for (std::size_t head = 0; packing_ && head < step.num_heads; ++head) {
      for (std::size_t i = 0; i < buckets.size(); ++i) {
        to[head * buckets.size() + i] = table.floats()[buckets[i] * step.num_heads + head];
      }
    }
    return found->second = to;
  }

  // Cosines and sines of every place, shared by the layers that turn alike.
  std::pair<const float*, const float*> turns(const step::Attention& step) {
    if (!step.rotary.has_value()) return {nullptr, nullptr};
    const auto [theta, rows, divisor] = *step.rotary;
    if (!(theta > 1) || !std::isfinite(theta) || rows == 0 || rows > kMaxSize ||
        !(divisor >= 1) || !std::isfinite(divisor)) {
      refuse("rotary positions of theta " + std::to_string(theta) + " and divisor " +
                 std::to_string(divisor) + " for " + std::to_string(rows) + " rows",
             "a theta above 1, a divisor from 1 and 1 to " + std::to_string(kMaxSize) +
                 " rows are needed");
    }
    model_.max_length = std::min(model_.max_length, rows);
    const auto [found, is_new] = turns_.try_emplace({theta, rows, divisor, step.head_size});
    if (!is_new) return found->second;
    const std::size_t half = step.head_size / 2;
    auto* cos = take<float>(rows * half);
    auto* sin = take<float>(rows * half);
    for (std::size_t i = 0; packing_ && i < half; ++i) {
      const double exponent = static_cast<double>(2 * i) / static_cast<double>(step.head_size);
      const auto frequency = static_cast<float>(1 / std::pow(theta, exponent) / divisor);
      for (std::size_t place = 0; place < rows; ++place) {
        const float angle = static_cast<float>(place) * frequency;
        cos[place * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
        sin[place * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
    return found->second = {cos, sin};
  }

  packed::FeedForward packed_step(const step::FeedForward& step) {
    expect("FeedForward", {State::kRowsAndInput});
    const Kernels& kernels = kernels_of(step);
    const std::size_t inner = of_rank(tensors_, step.up + ".weight", 2).shape[1];
    packed::FeedForward feed_forward;
    feed_forward.up = packed_linear(kernels, step.up, width_, inner, step.bias);
    if (step.gate.has_value()) {
      feed_forward.gate = packed_linear(kernels, *step.gate, width_, inner, step.bias);
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
    if (kernels.staged) {
      keep_most(model_.widths.staged_slice, columns);
      keep_most(model_.widths.staged, panels * kernels.panel);
    }
    state_ = State::kRows;
    return feed_forward;
  }

  static Epilogue epilogue_of(InnerActivation activation) {
    switch (activation) {
      case InnerActivation::kGelu: return Epilogue::kGelu;
      case InnerActivation::kGeluTanh: return Epilogue::kGeluTanh;
      case InnerActivation::kSilu: return Epilogue::kSilu;
    }
    return Epilogue::kGelu;
  }

  packed::Pool packed_step(const step::Pool& step) {
    expect("Pool", {State::kRows, State::kRowsAndInput});
    state_ = State::kSentences;
    if (step.modes.empty()) refuse("Pool has no mode", "at least one is needed");
    const std::size_t width = model_.hidden = width_;
    width_ *= step.modes.size();
    keep_most(model_.widths.pooled, width_);
    return {step.modes, width};
  }

  packed::Dense packed_step(const step::Dense& step) {
    expect("Dense", {State::kSentences});
    const std::size_t columns = of_rank(tensors_, step.name + ".weight", 2).shape[1];
    if (step.use_residual && columns != width_) {
      refuse(step.name + " has a residual around " + std::to_string(width_) + " -> " +
                 std::to_string(columns) + " columns",
             "equal sizes are needed");
    }
    const Linear linear = packed_linear(model_.floats, step.name, width_, columns, step.bias);
    keep_most(model_.widths.pooled, linear.panels * model_.floats.panel);
    width_ = columns;
    return {linear, step.activation, step.use_residual};
  }

  // A weight of bytes has a scale for each column.
  struct Weight {
    const char* data;
    std::size_t element;
    const float* scale;
  };
  Weight weight_of(const Kernels& kernels, const std::string& name, std::size_t depth,
                   std::size_t columns) const {
    const bool bytes = kernels.dtype == Dtype::kW8A16 || kernels.dtype == Dtype::kInt8;
    const Tensor& tensor = of_shape(tensors_, name + ".weight", {depth, columns}, bytes);
    const float* scale =
        bytes ? of_shape(tensors_, name + ".scale", {columns}).floats() : nullptr;
    return {static_cast<const char*>(tensor.data), bytes ? 1 : sizeof(float), scale};
  }

  Linear packed_linear(const Kernels& kernels, const std::string& name, std::size_t depth,
                       std::size_t columns, bool has_bias = true) {
    const Weight weight = weight_of(kernels, name, depth, columns);
    const float* bias = has_bias ? of_shape(tensors_, name + ".bias", {columns}).floats() : nullptr;
    return packed_part(kernels, weight, depth, columns, bias, 0);
  }

  // Cut along the depth; the first slice brings the bias. The last one's depth is padded to
  // whole panels of what feeds it: there `up` writes activation(0) = 0.
  std::vector<Linear> packed_slices(const Kernels& kernels, const std::string& name,
                                    std::size_t depth, std::size_t columns, std::size_t step,
                                    bool has_bias) {
    Weight weight = weight_of(kernels, name, depth, columns);
    const float* bias = has_bias ? of_shape(tensors_, name + ".bias", {columns}).floats() : nullptr;
    std::vector<Linear> parts;
    for (std::size_t k = 0; k < depth; k += step) {
      parts.push_back(packed_part(kernels, weight, std::min(step, depth - k), columns,
                                  k == 0 ? bias : nullptr, kernels.panel));
      weight.data += step * columns * weight.element;
    }
    return parts;
  }

  Linear packed_part(const Kernels& kernels, const Weight& weight, std::size_t depth,
                     std::size_t columns, const float* bias, std::size_t depth_multiple) {
    Linear linear;
    linear.kernels = &kernels;
    linear.depth = round_up(depth, std::max(depth_multiple, kernels.k_step));
    linear.columns = columns;
    linear.panels = round_up(columns, kernels.panel) / kernels.panel;
    linear.panel_bytes = kernels.panel_bytes(linear.depth);
    auto* packed = take<char>(linear.panels * linear.panel_bytes);
    linear.bias = padded(bias, columns, linear.panels * kernels.panel);
    linear.weight = packed;
    if (packing_) {
      kernels.pack({.weight = weight.data,
                    .ldw = columns,
                    .depth = depth,
                    .padded_depth = linear.depth,
                    .columns = columns,
                    .scale = weight.scale,
                    .packed = packed});
    }
    return linear;
  }

  // `from` may be null: all zeros.
  const float* padded(const float* from, std::size_t count, std::size_t room) {
    auto* to = take<float>(room);
    if (packing_ && from != nullptr) std::memcpy(to, from, count * sizeof(float));
    return to;
  }

  Model& model_;
  const Tensors& tensors_;
  const std::set<std::string>& bytes_only_;
  std::set<std::string> used_;
  const Step* next_ = nullptr;
  State state_ = State::kNothing;
  std::size_t width_ = 0;  // of x, or of the sentences' rows
  std::size_t bytes_ = 0;
  bool packing_ = false;
  std::map<std::tuple<double, std::size_t, double, std::size_t>,
           std::pair<const float*, const float*>>
      turns_;  // by theta, rows, divisor and head size
  std::map<std::string, const float*> distances_;
};

Model::Model(const Tensors& tensors, const std::vector<Step>& unpacked, const Kernels& main,
             const Kernels& bytes, const std::set<std::string>& bytes_only, const Kernels& float32,
             Guard guarded)
    : kernels(main), bytes_kernels(bytes), floats(float32), guard(guarded) {
  if (!bytes_only.empty() && kernels.dtype != Dtype::kInt8) {
    refuse("bytes_only names products, and the dtype is not int8", "it belongs to int8");
  }
  Packer(*this, tensors, bytes_only).pack(unpacked);
}

}  // namespace kosine
