#include "tensors.h"

#include <stdexcept>

namespace kosine {
namespace {

std::string text_of(const std::vector<std::size_t>& shape) {
  std::string text = "(";
  for (std::size_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + ")";
}

}  // namespace

void reject(const std::string& problem, const std::string& limit) {
  throw std::invalid_argument(problem + "; " + limit + "; export the model again");
}

bool has(const Tensors& tensors, const std::string& name) { return tensors.count(name) != 0; }

const Tensor& of_rank(const Tensors& tensors, const std::string& name, std::size_t rank) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) reject("tensor " + name + " is missing", "every tensor is needed");
  const auto& shape = found->second.shape;
  if (shape.size() != rank) {
    reject("tensor " + name + " has shape " + text_of(shape),
           std::to_string(rank) + " dimensions are needed");
  }
  for (std::size_t size : shape) {
    if (size == 0 || size > kMaxSize) {
      reject("tensor " + name + " has shape " + text_of(shape),
             "sizes go from 1 to " + std::to_string(kMaxSize));
    }
  }
  return found->second;
}

const Tensor& of_shape(const Tensors& tensors, const std::string& name,
                       const std::vector<std::size_t>& shape, bool bytes) {
  const Tensor& tensor = of_rank(tensors, name, shape.size());
  if (tensor.bytes != bytes) {
    reject("tensor " + name + " is " + (tensor.bytes ? "int8" : "float32"),
           std::string(bytes ? "int8" : "float32") + " is needed");
  }
  if (tensor.shape != shape) {
    reject("tensor " + name + " has shape " + text_of(tensor.shape), text_of(shape) + " is needed");
  }
  return tensor;
}

}  // namespace kosine
