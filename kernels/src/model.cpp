#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace kosine {
namespace {

constexpr std::size_t kLaneMultiple = 16;  // what every table's vectors divide
constexpr std::size_t kMaxHeadSize = 128;
constexpr std::size_t kMaxSize = std::size_t{1} << 24;
constexpr std::size_t kSliceColumns = 1024;  // of the feed-forward, at most

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

const Tensor& of_shape(const Tensors& tensors, const std::string& name,
                       const std::vector<std::size_t>& shape) {
  const Tensor& tensor = of_rank(tensors, name, shape.size());
  if (tensor.shape != shape) {
    refuse("tensor " + name + " has shape " + text_of(tensor.shape), text_of(shape) + " is needed");
  }
  return tensor;
}

bool has(const Tensors& tensors, const std::string& name) { return tensors.count(name) != 0; }

}  // namespace

Pooling pooling_named(const std::string& name) {
  if (name == "mean") return Pooling::kMean;
  if (name == "cls") return Pooling::kCls;
  if (name == "max") return Pooling::kMax;
  throw std::invalid_argument("unknown pooling '" + name + "'; known: mean, cls, max");
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

// Goes over the tensors twice: first it adds up what packing them will take, then, with an arena
// of that size, it packs them. Both rounds run the same code, so they cannot disagree.
class Model::Packer {
 public:
  Packer(Model& model, const Tensors& tensors) : model_(model), tensors_(tensors) {}

  void pack(const Config& config) {
    all(config);
    model_.arena_ = Arena(bytes_, model_.guard);
    packing_ = true;
    all(config);
    model_.arena_.seal();
  }

 private:
  template <class T>
  T* take(std::size_t count) {
    if (packing_) return model_.arena_.take<T>(count);
    bytes_ += round_up(count * sizeof(T), kAlignment);
    return nullptr;
  }

  void all(const Config& config) {
    const std::size_t hidden = model_.hidden_size;
    const std::size_t width = model_.embedding_size;
    const std::size_t inner = model_.intermediate_size;
    embeddings();
    model_.embedding_norm = norm("embeddings.norm", width);
    if (has(tensors_, "embeddings.project.weight")) {
      model_.project = linear(model_.kernels, "embeddings.project", width, hidden);
    } else if (width != hidden) {
      refuse("embedding_size is " + std::to_string(width) + " and hidden_size " +
                 std::to_string(hidden),
             "without embeddings.project.weight they must be equal");
    }
    model_.layers.clear();
    for (std::size_t i = 0; i < config.num_layers; ++i) {
      const std::string at = "layers." + std::to_string(i) + ".";
      Layer& layer = model_.layers.emplace_back();
      layer.qkv = linear(model_.kernels, at + "attention.qkv", hidden, 3 * hidden);
      layer.output = linear(model_.kernels, at + "attention.output", hidden, hidden);
      layer.attention_norm = norm(at + "attention.norm", hidden);
      layer.up = linear(model_.kernels, at + "ffn.up", hidden, inner);
      layer.down = slices(at + "ffn.down", inner, hidden);
      layer.ffn_norm = norm(at + "ffn.norm", hidden);
    }
    dense(config);
  }

  void embeddings() {
    const std::size_t width = model_.embedding_size;
    const Tensor& words = of_shape(tensors_, "embeddings.word.weight", {model_.vocab_size, width});
    const Tensor& places =
        of_shape(tensors_, "embeddings.position.weight", {model_.num_positions, width});
    const std::string types = "embeddings.token_type.weight";
    const float* type = nullptr;
    if (has(tensors_, types)) {
      const Tensor& tensor = of_rank(tensors_, types, 2);
      if (tensor.shape[1] != width) {
        refuse("tensor " + types + " has shape " + text_of(tensor.shape),
               std::to_string(width) + " columns are needed");
      }
      type = tensor.data;
    }
    auto* word = take<float>(model_.vocab_size * width);
    auto* position = take<float>(model_.num_positions * width);
    if (packing_) {
      std::memcpy(word, words.data, model_.vocab_size * width * sizeof(float));
      for (std::size_t i = 0; i < model_.num_positions * width; ++i) {
        position[i] = places.data[i] + (type == nullptr ? 0.0f : type[i % width]);
      }
    }
    model_.word = word;
    model_.position = position;
  }

  Norm norm(const std::string& name, std::size_t width) {
    const Tensor& gain = of_shape(tensors_, name + ".weight", {width});
    const Tensor& bias = of_shape(tensors_, name + ".bias", {width});
    return {padded(gain.data, width, width), padded(bias.data, width, width)};
  }

  Linear linear(const Kernels& kernels, const std::string& name, std::size_t depth,
                std::size_t columns, bool bias_optional = false) {
    const Tensor& weight = of_shape(tensors_, name + ".weight", {depth, columns});
    const float* bias = nullptr;
    if (!bias_optional || has(tensors_, name + ".bias")) {
      bias = of_shape(tensors_, name + ".bias", {columns}).data;
    }
    return part(kernels, weight.data, depth, columns, bias, 0);
  }

  // Cut along the depth; the first slice brings the bias. The last one's depth is padded to
  // whole panels of what feeds it: there `up` writes gelu(0) = 0.
  std::vector<Linear> slices(const std::string& name, std::size_t depth, std::size_t columns) {
    const Tensor& weight = of_shape(tensors_, name + ".weight", {depth, columns});
    const float* bias = of_shape(tensors_, name + ".bias", {columns}).data;
    const std::size_t step = model_.slice_panels * model_.kernels.panel;
    std::vector<Linear> parts;
    for (std::size_t k = 0; k < depth; k += step) {
      parts.push_back(part(model_.kernels, weight.data + k * columns, std::min(step, depth - k),
                           columns, k == 0 ? bias : nullptr, model_.kernels.panel));
    }
    return parts;
  }

  Linear part(const Kernels& kernels, const float* weight, std::size_t depth, std::size_t columns,
              const float* bias, std::size_t depth_multiple) {
    Linear linear;
    linear.depth = round_up(depth, std::max(depth_multiple, kernels.k_step));
    linear.columns = columns;
    linear.panels = round_up(columns, kernels.panel) / kernels.panel;
    linear.panel_bytes = linear.depth * kernels.panel * kernels.activation;
    auto* packed = take<char>(linear.panels * linear.panel_bytes);
    linear.bias = padded(bias, columns, linear.panels * kernels.panel);
    linear.weight = packed;
    if (packing_) kernels.pack(weight, columns, depth, linear.depth, columns, packed);
    return linear;
  }

  // `from` may be null: all zeros.
  const float* padded(const float* from, std::size_t count, std::size_t room) {
    auto* to = take<float>(room);
    if (packing_ && from != nullptr) std::memcpy(to, from, count * sizeof(float));
    return to;
  }

  void dense(const Config& config) {
    model_.dense.clear();
    model_.dim = model_.hidden_size;
    for (std::size_t i = 0; i < config.dense.size(); ++i) {
      const std::string name = "dense." + std::to_string(i);
      const std::size_t columns = of_rank(tensors_, name + ".weight", 2).shape[1];
      if (config.dense[i].use_residual && columns != model_.dim) {
        refuse(name + " has a residual around " + std::to_string(model_.dim) + " -> " +
                   std::to_string(columns) + " columns",
               "equal sizes are needed");
      }
      model_.dense.push_back({linear(model_.floats, name, model_.dim, columns, true),
                              config.dense[i].activation, config.dense[i].use_residual});
      model_.dim = columns;
    }
  }

  Model& model_;
  const Tensors& tensors_;
  std::size_t bytes_ = 0;
  bool packing_ = false;
};

Model::Model(const Tensors& tensors, const Config& config, const Kernels& table,
             const Kernels& float_table, Guard guarded)
    : kernels(table),
      floats(float_table),
      guard(guarded),
      num_heads(config.num_heads),
      layer_norm_eps(config.layer_norm_eps),
      pooling(config.pooling) {
  const auto& words = of_rank(tensors, "embeddings.word.weight", 2).shape;
  vocab_size = words[0];
  embedding_size = words[1];
  num_positions = of_rank(tensors, "embeddings.position.weight", 2).shape[0];
  if (config.num_layers == 0 || config.num_layers > kMaxSize) {
    refuse("num_layers is " + std::to_string(config.num_layers), "at least 1 is needed");
  }
  hidden_size = of_rank(tensors, "layers.0.attention.output.weight", 2).shape[0];
  intermediate_size = of_rank(tensors, "layers.0.ffn.up.weight", 2).shape[1];
  if (num_heads == 0 || hidden_size % num_heads != 0) {
    refuse("num_heads is " + std::to_string(num_heads),
           "a divisor of hidden_size " + std::to_string(hidden_size) + " is needed");
  }
  head_size = hidden_size / num_heads;
  if (head_size % kLaneMultiple != 0 || head_size > kMaxHeadSize) {
    refuse("the head size is " + std::to_string(head_size),
           "a multiple of 16 up to 128 is needed");
  }
  if (embedding_size % kLaneMultiple != 0) {
    refuse("embedding_size is " + std::to_string(embedding_size), "a multiple of 16 is needed");
  }
  if (!(layer_norm_eps > 0) || !std::isfinite(layer_norm_eps)) {
    refuse("layer_norm_eps is " + std::to_string(layer_norm_eps), "a positive number is needed");
  }
  const std::size_t slice_count = round_up(intermediate_size, kSliceColumns) / kSliceColumns;
  const std::size_t panels = round_up(intermediate_size, kernels.panel) / kernels.panel;
  slice_panels = round_up(panels, slice_count) / slice_count;
  Packer(*this, tensors).pack(config);
}

}  // namespace kosine
