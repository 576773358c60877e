// An encoder's weights, checked and packed for one table of kernels.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "arena.h"
#include "kernels.h"

namespace kosine {

// A float32 array in C order, by its canonical name.
struct Tensor {
  const float* data;
  std::vector<std::size_t> shape;
};
using Tensors = std::map<std::string, Tensor>;

enum class Pooling { kMean, kCls, kMax };
enum class Activation { kIdentity, kTanh, kRelu, kGelu, kSigmoid };

Pooling pooling_named(const std::string& name);        // these throw std::invalid_argument
Activation activation_named(const std::string& name);

struct Config {
  std::size_t num_layers = 0;
  std::size_t num_heads = 0;
  float layer_norm_eps = 0;
  Pooling pooling = Pooling::kMean;
  // Dense modules after pooling: what is not in the tensors' shapes.
  struct Dense {
    Activation activation;
    bool use_residual;
  };
  std::vector<Dense> dense;
};

// activations (., depth) x weight (depth, columns) + bias, in packed panels.
struct Linear {
  const char* weight = nullptr;
  const float* bias = nullptr;   // padded with zeros to whole panels
  std::size_t depth = 0;         // padded to the table's k_step
  std::size_t columns = 0;       // before padding
  std::size_t panels = 0;
  std::size_t panel_bytes = 0;
};

struct Norm {
  const float* gain = nullptr;
  const float* bias = nullptr;
};

struct Layer {
  Linear qkv;
  Linear output;
  Norm attention_norm;
  Linear up;
  // The way down is cut along its depth, so that a thread can run the feed-forward slice by
  // slice with the inner activations in its cache. Slice i reads the columns that panels
  // [i * slice_panels, ...) of `up` write. The cut is part of the arithmetic: it never changes.
  std::vector<Linear> down;
  Norm ffn_norm;
};

struct DenseLayer {
  Linear linear;
  Activation activation;
  bool use_residual;
};

struct Model {
  Model(const Tensors& tensors, const Config& config, const Kernels& table,
        const Kernels& float_table, Guard guarded);

  const Kernels& kernels;
  const Kernels& floats;  // the float32 table for what follows pooling
  Guard guard;
  std::size_t vocab_size, num_positions, embedding_size, hidden_size, intermediate_size;
  std::size_t num_heads, head_size;
  std::size_t slice_panels;
  std::size_t dim;
  float layer_norm_eps;
  Pooling pooling;

  const float* word;      // (vocab_size, embedding_size)
  const float* position;  // (num_positions, embedding_size), token type 0 added
  Norm embedding_norm;
  std::optional<Linear> project;
  std::vector<Layer> layers;
  std::vector<DenseLayer> dense;

  std::size_t bytes() const { return arena_.capacity(); }

 private:
  class Packer;
  Arena arena_;
};

}  // namespace kosine
