// What happens to rows between products: GELU, LayerNorm, rounding.
#pragma once

#include "exponential.h"
#include "kernels.h"

namespace {

// Phi(x) = 1/2 + t P(t^2), t = x cut off at +-kEdge, beyond which Phi is 0 or 1. P is a minimax
// polynomial written in s = 2 (t / kEdge)^2 - 1, which keeps its coefficients small.
struct PhiForFloats {  // absolute error of x Phi(x) under 1e-6 for |x| <= 8
  static constexpr float kEdge = 5.25f;
  static constexpr bool kClamps = true;  // to 0..1, which rounding may leave at the edges
  static constexpr float kCoefficients[] = {
      0.13465934991836548f,    -0.06712659448385239f,  0.04964519292116165f,
      -0.03977121785283089f,   0.032045260071754456f,  -0.024965422227978706f,
      0.018425434827804565f,   -0.013090514577925205f, 0.008839712478220463f,
      -0.004827069118618965f,  0.0021121108438819647f, -0.0016196838114410639f,
      0.0013621646212413907f,  -0.000450650550192222f,
  };
};
struct PhiForBytes {  // under 3e-5 for |x| <= 100, of what is rounded to 1/255 of its range next
  static constexpr float kEdge = 4.39f;
  static constexpr bool kClamps = false;
  static constexpr float kCoefficients[] = {
      0.16076256334781647f, -0.07875586301088333f, 0.055289410054683685f,
      -0.040047820657491684f, 0.02671993337571621f, -0.01585974544286728f,
      0.01083718053996563f, -0.007771747652441263f, 0.0027213008143007755f,
  };
};

// x Phi(x), Phi the normal distribution function: the erf form of GELU. Of several vectors step by
// step: each step of one waits for the step before, and the processor does not see far enough ahead
// to begin with the next vector meanwhile.
template <class Phi, int N>
[[gnu::always_inline]] inline void gelu(Vec (&x)[N]) {
  constexpr int kLast = sizeof Phi::kCoefficients / sizeof(float) - 1;
  const Vec edge = Vec::all(Phi::kEdge);
  Vec t[N], s[N], p[N];
  const auto each = [](auto step) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) step(i);
  };
  each([&](int i) { t[i] = max(Vec::zero() - edge, min(edge, x[i])); });
  each([&](int i) {
    s[i] = fma(t[i] * t[i], Vec::all(2.0f / (Phi::kEdge * Phi::kEdge)), Vec::all(-1.0f));
    p[i] = Vec::all(Phi::kCoefficients[kLast]);
  });
#pragma GCC unroll 16
  for (int k = kLast - 1; k >= 0; --k) {
    each([&](int i) { p[i] = fma(p[i], s[i], Vec::all(Phi::kCoefficients[k])); });
  }
  each([&](int i) { p[i] = fma(p[i], t[i], Vec::all(0.5f)); });
  if constexpr (Phi::kClamps) {
    each([&](int i) { p[i] = max(Vec::zero(), min(Vec::all(1.0f), p[i])); });
  }
  each([&](int i) { x[i] = x[i] * p[i]; });
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
                                                  typename Dot::Activation* out,
                                                  [[maybe_unused]] std::size_t ldo) {
  const auto at = [&](std::size_t i) { return Vec::load(x + i); };
  if constexpr (Dot::kQuantized) {
    quantize_row<Dot>(at, width, smooth, out, ldo / 2);
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
    const auto take = [&](std::size_t i) {
      const Vec y = normed(i);
      if (!args.keeps_x) y.store(x + i);
      return y;
    };
    if constexpr (Dot::kQuantized) {
      quantize_row<Dot>(take, args.width, args.smooth, rounded, args.ldr / 2);
    } else {
      for (std::size_t i = 0; i < args.width; i += Vec::kLanes) Dot::store(take(i), rounded + i);
    }
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
                        static_cast<Dot::Activation*>(args.out) + row * args.ldo, args.ldo);
  }
}

}  // namespace
