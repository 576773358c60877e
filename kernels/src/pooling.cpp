#include "pooling.h"

#include <algorithm>
#include <cmath>

namespace kosine {
namespace {

constexpr float kNormFloor = 1e-12f;  // torch.nn.functional.normalize's eps

float activate(float x, Activation activation) {
  switch (activation) {
    case Activation::kIdentity: return x;
    case Activation::kTanh: return std::tanh(x);
    case Activation::kRelu: return x < 0 ? 0.0f : x;  // lets NaN through
    case Activation::kGelu: return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    case Activation::kSigmoid: return 1.0f / (1.0f + std::exp(-x));
  }
  return x;
}

// Row i weighs i + 1, whatever is left out before it.
void weighted_mean(const float* x, std::size_t ldx, std::size_t length, std::size_t skip,
                   std::size_t width, float* out) {
  std::fill(out, out + width, 0.0f);
  double total = 0;
  for (std::size_t i = skip; i < length; ++i) {
    const float* row = x + i * ldx;
    const auto weight = static_cast<float>(i + 1);
    total += weight;
    for (std::size_t j = 0; j < width; ++j) out[j] += weight * row[j];
  }
  const auto divisor = static_cast<float>(total);
  for (std::size_t j = 0; j < width; ++j) out[j] /= divisor;
}

}  // namespace

void pool_rows(const float* x, std::size_t ldx, std::size_t length, std::size_t skip,
               std::size_t width, Pooling pooling, float* out) {
  if (pooling == Pooling::kCls) {
    const float* first = x + (skip < length ? skip : 0) * ldx;
    std::copy(first, first + width, out);
    return;
  }
  if (skip >= length) {
    std::fill(out, out + width, 0.0f);
    return;
  }
  if (pooling == Pooling::kLast) {
    const float* last = x + (length - 1) * ldx;
    std::copy(last, last + width, out);
    return;
  }
  if (pooling == Pooling::kWeightedMean) {
    weighted_mean(x, ldx, length, skip, width, out);
    return;
  }
  std::copy(x + skip * ldx, x + skip * ldx + width, out);
  for (std::size_t i = skip + 1; i < length; ++i) {
    const float* row = x + i * ldx;
    if (pooling != Pooling::kMax) {
      for (std::size_t j = 0; j < width; ++j) out[j] += row[j];
    } else {
      // A NaN on either side stays.
      for (std::size_t j = 0; j < width; ++j) {
        out[j] = out[j] < row[j] || row[j] != row[j] ? row[j] : out[j];
      }
    }
  }
  if (pooling == Pooling::kMax) return;
  auto count = static_cast<float>(length - skip);
  if (pooling == Pooling::kMeanSqrtLength) count = std::sqrt(count);
  for (std::size_t j = 0; j < width; ++j) out[j] /= count;
}

void apply_dense(const packed::Dense& dense, const Kernels& floats, const Matrix<float>& from,
                 const Matrix<float>& to, std::size_t begin, std::size_t end) {
  const Linear& linear = dense.linear;
  floats.gemm({
      .a = from.row(begin),
      .lda = from.stride,
      .rows = end - begin,
      .weight = linear.weight,
      .bias = linear.bias,
      .depth = linear.depth,
      .panels = linear.panels,
      .out = to.row(begin),
      .ldo = to.stride,
      .epilogue = Epilogue::kStore,
  });
  for (std::size_t i = begin; i < end; ++i) {
    float* row = to.row(i);
    for (std::size_t j = 0; j < linear.columns; ++j) {
      row[j] = activate(row[j], dense.activation);
      if (dense.use_residual) row[j] += from.row(i)[j];
    }
  }
}

float normalise_row(const float* x, std::size_t width, float* out) {
  double squares = 0;
  for (std::size_t j = 0; j < width; ++j) squares += static_cast<double>(x[j]) * x[j];
  const auto norm = static_cast<float>(std::sqrt(squares));
  const float divisor = norm < kNormFloor ? kNormFloor : norm;
  for (std::size_t j = 0; j < width; ++j) out[j] = x[j] / divisor;
  return norm;
}

}  // namespace kosine
