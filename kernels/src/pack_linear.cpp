#include "packer.h"

#include <cstring>

namespace kosine {

Model::Packer::Weight Model::Packer::weight_of(const Kernels& kernels, const std::string& name,
                                               std::size_t depth, std::size_t columns) const {
  const bool bytes = kernels.quantized;
  const Tensor& tensor = of_shape(tensors_, name + ".weight", {depth, columns}, bytes);
  const float* scale =
      bytes ? of_shape(tensors_, name + ".scale", {columns}).floats() : nullptr;
  return {static_cast<const char*>(tensor.data), bytes ? 1 : sizeof(float), scale};
}

Linear Model::Packer::packed_linear(const Kernels& kernels, const std::string& name, std::size_t
                                    depth, std::size_t columns, bool has_bias) {
  const Weight weight = weight_of(kernels, name, depth, columns);
  const float* bias = has_bias ? of_shape(tensors_, name + ".bias", {columns}).floats() : nullptr;
  return packed_part(kernels, weight, depth, columns, bias, 0);
}

std::vector<Linear> Model::Packer::packed_slices(const Kernels& kernels, const std::string& name,
                                                 std::size_t depth, std::size_t columns,
                                                 std::size_t step, bool has_bias) {
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

Linear Model::Packer::packed_part(const Kernels& kernels, const Weight& weight, std::size_t depth,
                                  std::size_t columns, const float* bias, std::size_t
                                  depth_multiple) {
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

const float* Model::Packer::padded(const float* from, std::size_t count, std::size_t room) {
  auto* to = take<float>(room);
  if (packing_ && from != nullptr) std::memcpy(to, from, count * sizeof(float));
  return to;
}

}  // namespace kosine
