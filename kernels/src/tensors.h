// The arrays that a model is made of, by name; each is checked before it is read.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace kosine {

// An array in C order, by its canonical name: float32, or signed bytes.
struct Tensor {
  const void* data;
  bool bytes;
  std::vector<std::size_t> shape;

  const float* floats() const { return static_cast<const float*>(data); }
};
using Tensors = std::map<std::string, Tensor>;

constexpr std::size_t kMaxSize = std::size_t{1} << 24;

// Throws std::invalid_argument, as all that follow do.
[[noreturn]] void reject(const std::string& problem, const std::string& limit);

bool has(const Tensors& tensors, const std::string& name);

// A tensor of so many dimensions, each from 1 to kMaxSize.
const Tensor& of_rank(const Tensors& tensors, const std::string& name, std::size_t rank);

// A tensor of this shape: of float32, or with `bytes` of int8.
const Tensor& of_shape(const Tensors& tensors, const std::string& name,
                       const std::vector<std::size_t>& shape, bool bytes = false);

}  // namespace kosine
