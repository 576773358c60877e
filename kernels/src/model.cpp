#include "model.h"

#include <stdexcept>

#include "packer.h"

namespace kosine {

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

Model::Model(const Tensors& tensors, const std::vector<Step>& unpacked, const Kernels& main,
             const Kernels& bytes, const std::set<std::string>& bytes_only, const Kernels& float32,
             Guard guarded)
    : kernels(main), bytes_kernels(bytes), floats(float32), guard(guarded) {
  if (!bytes_only.empty() && kernels.dtype != Dtype::kInt8) {
    reject("bytes_only names products, and the dtype is not int8", "it belongs to int8");
  }
  Packer(*this, tensors, bytes_only).pack(unpacked);
}

}  // namespace kosine
