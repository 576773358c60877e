// What happens to rows between products: GELU, LayerNorm, rounding.
#pragma once

#include "exponential.h"
#include "kernels.h"

namespace {

// x Phi(x), Phi the normal distribution function: the erf form of GELU. Absolute error under
// 1e-6 for |x| <= 8: Phi(x) = 1/2 + x P(x^2) with P a minimax polynomial of degree 13 on
// |x| <= 5.25 (beyond which Phi is 0 or 1 to within 8e-8), written in s = 2 (x / 5.25)^2 - 1 to
// keep its coefficients small.
inline Vec gelu(Vec x) {
  constexpr float kEdge = 5.25f;
  constexpr float kCoefficients[] = {
      0.13465934991836548f,    -0.06712659448385239f,  0.04964519292116165f,
      -0.03977121785283089f,   0.032045260071754456f,  -0.024965422227978706f,
      0.018425434827804565f,   -0.013090514577925205f, 0.008839712478220463f,
      -0.004827069118618965f,  0.0021121108438819647f, -0.0016196838114410639f,
      0.0013621646212413907f,  -0.000450650550192222f,
  };
  constexpr int kLast = sizeof kCoefficients / sizeof kCoefficients[0] - 1;
  const Vec t = max(Vec::all(-kEdge), min(Vec::all(kEdge), x));
  const Vec s = fma(t * t, Vec::all(2.0f / (kEdge * kEdge)), Vec::all(-1.0f));
  Vec p = Vec::all(kCoefficients[kLast]);
#pragma GCC unroll 16
  for (int i = kLast - 1; i >= 0; --i) p = fma(p, s, Vec::all(kCoefficients[i]));
  const Vec phi = fma(p, t, Vec::all(0.5f));
  return x * max(Vec::zero(), min(Vec::all(1.0f), phi));
}

// x / (1 + e^-z), with the exponential of what is not above 0.
inline Vec times_sigmoid(Vec x, Vec z) {
  const Vec numerator = exp_negative(min(Vec::zero(), z));
  return x * numerator / (Vec::all(1.0f) + exp_negative(min(Vec::zero() - z, z)));
}

inline Vec silu(Vec x) { return times_sigmoid(x, x); }

// x (1 + tanh(u)) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline Vec gelu_tanh(Vec x) {
  const Vec cubed = fma(x * x * x, Vec::all(0.044715f), x);
  return times_sigmoid(x, cubed * Vec::all(1.5957691216057308f));
}

// The sum of f(0), f(lanes), f(2 lanes), ... below `width`, in four interleaved chains.
template <class F>
[[gnu::always_inline]] inline float sum_over(std::size_t width, F f) {
  constexpr std::size_t kLanes = Vec::kLanes;
  Vec chains[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  std::size_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (std::size_t j = 0; j < 4; ++j) chains[j] = chains[j] + f(i + j * kLanes);
  }
  for (; i < width; i += kLanes) chains[0] = chains[0] + f(i);
  return sum((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

// One row of floats times `smooth`, which may be null.
template <class Dot>
[[gnu::always_inline]] inline void to_activations(const float* x, std::size_t width,
                                                  const float* smooth,
                                                  typename Dot::Activation* out) {
  const auto at = [&](std::size_t i) { return Vec::load(x + i); };
  if constexpr (Dot::kStaged) {
    Dot::quantize(at, width, smooth, out);
  } else {
    for (std::size_t i = 0; i < width; i += Vec::kLanes) Dot::store(at(i), out + i);
  }
}

// What a row is centred by, and multiplied by then.
struct Statistics {
  Vec mean;
  Vec scale;
};

// Two passes: the variance of the centred row loses nothing to cancellation. RMSNorm is LayerNorm
// around a mean of zero.
[[gnu::always_inline]] inline Statistics statistics_of(const float* x, std::size_t width, float eps,
                                                       bool rms) {
  const float inverse_width = 1.0f / static_cast<float>(width);
  const Vec mean =
      rms ? Vec::zero()
          : Vec::all(sum_over(width, [&](std::size_t i) { return Vec::load(x + i); }) *
                     inverse_width);
  const float variance = sum_over(width,
                                  [&](std::size_t i) {
                                    const Vec centred = Vec::load(x + i) - mean;
                                    return centred * centred;
                                  }) *
                         inverse_width;
  return {mean, Vec::all(1.0f / __builtin_sqrtf(variance + eps))};
}

template <class Dot>
void layer_norm_rows(const kosine::NormArgs& args) {
  for (std::size_t row = 0; row < args.rows; ++row) {
    float* x = args.x + row * args.ldx;
    const auto [mean, scale] = statistics_of(x, args.width, args.eps, args.rms);
    auto* rounded = static_cast<typename Dot::Activation*>(args.rounded) + row * args.ldr;
    const auto normed = [&](std::size_t i) {
      return fma((Vec::load(x + i) - mean) * scale, Vec::load(args.gain + i),
                 Vec::load(args.bias + i));
    };
    if constexpr (Dot::kStaged) {
      if (args.keeps_x) {
        Dot::quantize(normed, args.width, args.smooth, rounded);
        continue;
      }
    }
    for (std::size_t i = 0; i < args.width; i += Vec::kLanes) {
      const Vec y = normed(i);
      if (!args.keeps_x) y.store(x + i);
      if constexpr (!Dot::kStaged) Dot::store(y, rounded + i);
    }
    if constexpr (Dot::kStaged) to_activations<Dot>(x, args.width, args.smooth, rounded);
  }
}

void layer_norm(const kosine::NormArgs& args) { layer_norm_rows<Dot>(args); }

void norm_rows(const kosine::RowNormArgs& args) {
  for (std::size_t row = 0; row < args.rows; ++row) {
    const float* x = args.x + row * args.ldx;
    float* out = args.out + row * args.ldo;
    const auto [mean, scale] = statistics_of(x, args.width, args.eps, args.rms);
    for (std::size_t i = 0; i < args.width; i += Vec::kLanes) {
      const Vec y = fma((Vec::load(x + i) - mean) * scale, Vec::load(args.gain + i),
                        Vec::load(args.bias + i));
      (args.adds ? Vec::load(out + i) + y : y).store(out + i);
    }
  }
}

// Half a row is a multiple of 8 floats: the last 8 go one by one where vectors are wider.
void turn(const kosine::TurnArgs& args) {
  const std::size_t half = args.head_size / 2;
  for (std::size_t row = 0; row < args.length; ++row) {
    float* a = args.x + row * args.ld;
    float* b = a + half;
    const float* cos = args.cos + row * half;
    const float* sin = args.sin + row * half;
    std::size_t i = 0;
    for (; i + Vec::kLanes <= half; i += Vec::kLanes) {
      const Vec left = Vec::load(a + i), right = Vec::load(b + i);
      const Vec c = Vec::load(cos + i), s = Vec::load(sin + i);
      (left * c - right * s).store(a + i);
      (right * c + left * s).store(b + i);
    }
    for (; i < half; ++i) {
      const float left = a[i], right = b[i];
      a[i] = left * cos[i] - right * sin[i];
      b[i] = right * cos[i] + left * sin[i];
    }
  }
}

void round_rows(const kosine::RoundArgs& args) {
  for (std::size_t row = 0; row < args.rows; ++row) {
    to_activations<Dot>(args.x + row * args.ldx, args.width, args.smooth,
                        static_cast<Dot::Activation*>(args.out) + row * args.ldo);
  }
}

}  // namespace
