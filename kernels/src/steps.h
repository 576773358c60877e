// What an encoder computes, step by step: arrays by name, and numbers. The steps are those of
// kosine_kernels/steps.py, field by field.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace kosine {

enum class Pooling { kMean, kCls, kMax, kMeanSqrtLength, kWeightedMean, kLast };
enum class Activation { kIdentity, kTanh, kRelu, kGelu, kSigmoid };
enum class InnerActivation { kGelu, kGeluTanh, kSilu };

Pooling pooling_named(const std::string& name);        // these throw std::invalid_argument
Activation activation_named(const std::string& name);
InnerActivation inner_activation_named(const std::string& name);

namespace step {

struct Embed {
  std::string word;
  std::optional<std::string> position;
  std::optional<std::string> token_type;
};
struct Norm {
  std::string name;
  float eps;
  bool bias;
  bool keeps_x;
  bool rms;
};
struct Linear {
  std::string name;
};
struct Rotary {
  double theta;
  std::size_t rows;
  double divisor;
};
struct Distances {
  std::string name;
  std::vector<std::size_t> buckets;
};
struct Attention {
  std::string qkv;
  std::string output;
  std::size_t num_heads;
  std::size_t head_size;
  bool bias;
  std::optional<Rotary> rotary;
  std::optional<std::size_t> window;
  std::optional<Distances> distances;
  std::optional<std::size_t> num_key_value_heads;
  bool causal;
  std::optional<Norm> query_norm;
  std::optional<Norm> key_norm;
  std::optional<Norm> norm;
};
struct FeedForward {
  std::string up;
  std::string down;
  std::optional<std::string> gate;
  bool bias;
  InnerActivation activation;
  std::optional<Norm> norm;
};
struct Pool {
  std::vector<Pooling> modes;
};
struct Dense {
  std::string name;
  bool bias;
  Activation activation;
  bool use_residual;
};

}  // namespace step

using Step = std::variant<step::Embed, step::Norm, step::Linear, step::Attention,
                          step::FeedForward, step::Pool, step::Dense>;

}  // namespace kosine
