#include "packer.h"

#include <cmath>

namespace kosine {
namespace {

constexpr std::size_t kMaxHeadSize = 256;

}  // namespace

packed::Attention Model::Packer::packed_step(const step::Attention& step) {
  expect("Attention", {State::kRowsAndInput});
  if (step.num_heads == 0 || step.num_heads > kMaxSize) {
    reject("num_heads is " + std::to_string(step.num_heads), "at least 1 is needed");
  }
  if (step.head_size == 0 || step.head_size % kLaneMultiple != 0 ||
      step.head_size > kMaxHeadSize) {
    reject("the head size is " + std::to_string(step.head_size),
           "a multiple of 16 up to 256 is needed");
  }
  const std::size_t shared = step.num_key_value_heads.value_or(step.num_heads);
  if (shared == 0 || step.num_heads % shared != 0) {
    reject("num_key_value_heads is " + std::to_string(shared),
           "a divisor of the " + std::to_string(step.num_heads) + " heads is needed");
  }
  const std::size_t width = step.num_heads * step.head_size;
  packed::Attention attention;
  attention.num_heads = step.num_heads;
  attention.num_key_value_heads = shared;
  attention.head_size = step.head_size;
  attention.qkv = packed_linear(kernels_of(step.qkv), step.qkv, width_,
                                width + 2 * shared * step.head_size, step.bias);
  // What all keys have in common moves no weight of a row, but takes up digits of what is rounded.
  if (packing_ && step.bias && model_.kernels.head != sizeof(float) && !step.rotary.has_value() &&
      !step.key_norm.has_value()) {
    auto* bias = const_cast<float*>(attention.qkv.bias) + width;
    for (std::size_t i = 0; i < shared * step.head_size; ++i) bias[i] -= bias[i];  // NaN stays
  }
  attention.output = packed_linear(kernels_of(step.output), step.output, width, width_,
                                   step.bias);
  const Kernels& output = *attention.output.kernels;
  attention.rounding = rounding_for(step.output, output, width);
  keep_most(model_.widths.context, row_bytes(output, width));
  std::tie(attention.cos, attention.sin) = turns(step);
  attention.query_norm = row_norm(step.query_norm, step.head_size);
  attention.key_norm = row_norm(step.key_norm, step.head_size);
  keep_most(model_.widths.qkv,
            attention.qkv.panels * attention.qkv.kernels->panel *
                (attention.changes_heads() ? sizeof(float) : model_.kernels.head));
  attention.norm = branch_norm(step.norm);
  attention.behind = std::min(step.window.value_or(kMaxSize), kMaxSize);
  attention.ahead = step.causal ? 0 : attention.behind;
  keep_most(model_.widths.head, step.head_size);
  if (model_.kernels.quantized) {
    keep_most(model_.widths.staged_slice, width);
    keep_most(model_.widths.staged, width);
  }
  state_ = State::kRows;
  attention.distances = distances(step);
  attention.reach = step.distances.has_value() ? step.distances->buckets.size() / 2 : 0;
  return attention;
}

const float* Model::Packer::distances(const step::Attention& step) {
  if (!step.distances.has_value()) return nullptr;
  const auto& [name, buckets] = *step.distances;
  const std::size_t rows = of_rank(tensors_, name + ".weight", 2).shape[0];
  const Tensor& table = of_shape(tensors_, name + ".weight", {rows, step.num_heads});
  if (buckets.size() % 2 == 0 || buckets.size() > kMaxSize ||
      *std::max_element(buckets.begin(), buckets.end()) >= rows) {
    reject("the buckets of " + name + " are " + std::to_string(buckets.size()),
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

std::pair<const float*, const float*> Model::Packer::turns(const step::Attention& step) {
  if (!step.rotary.has_value()) return {nullptr, nullptr};
  const auto [theta, rows, divisor] = *step.rotary;
  if (!(theta > 1) || !std::isfinite(theta) || rows == 0 || rows > kMaxSize ||
      !(divisor >= 1) || !std::isfinite(divisor)) {
    reject("rotary positions of theta " + std::to_string(theta) + " and divisor " +
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

}  // namespace kosine
