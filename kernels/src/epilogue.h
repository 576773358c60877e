// What becomes of a vector of a product, bias added, on its way out.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "rowwise.h"

namespace {

// What an epilogue writes.
template <kosine::Epilogue kEpilogue>
struct OutputOf {
  using Type = float;
};
template <>
struct OutputOf<kosine::Epilogue::kHeads> {
  using Type = Heads::Element;
};
template <>
struct OutputOf<kosine::Epilogue::kGelu> {
  using Type = Output::Activation;
};
template <>
struct OutputOf<kosine::Epilogue::kGeluTanh> {
  using Type = Output::Activation;
};
template <>
struct OutputOf<kosine::Epilogue::kSilu> {
  using Type = Output::Activation;
};
template <>
struct OutputOf<kosine::Epilogue::kGate> {
  using Type = Output::Activation;
};

// The same where heads are floats.
constexpr kosine::Epilogue kHeadsEpilogue = std::is_same_v<Heads::Element, float>
                                                ? kosine::Epilogue::kStore
                                                : kosine::Epilogue::kHeads;

// The rows of a tile, two vectors wide, on their way while it multiplies: by the time that a panel is
// through, what it adds to has left the L1 cache, and often the L2 cache too.
template <kosine::Epilogue kEpilogue, int R>
[[gnu::always_inline]] inline void fetch_output(const kosine::GemmArgs& args, std::size_t row,
                                                std::size_t column) {
  using Type = typename OutputOf<kEpilogue>::Type;
  const Type* out = static_cast<const Type*>(args.out) + row * args.ldo + column;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    __builtin_prefetch(out + r * args.ldo, 1);
    __builtin_prefetch(out + r * args.ldo + Vec::kLanes, 1);
  }
}

// `at`: elements from the start of `out`.
template <kosine::Epilogue kEpilogue>
[[gnu::always_inline]] inline void finish_one(Vec y, void* out, std::size_t at) {
  using kosine::Epilogue;
  if constexpr (kEpilogue == Epilogue::kStore) {
    y.store(static_cast<float*>(out) + at);
  } else if constexpr (kEpilogue == Epilogue::kHeads) {
    Heads::store(y, static_cast<Heads::Element*>(out) + at);
  } else if constexpr (kEpilogue == Epilogue::kAdd) {
    float* sum = static_cast<float*>(out) + at;
    (Vec::load(sum) + y).store(sum);
  } else {
    auto* to = static_cast<Output::Activation*>(out) + at;
    if constexpr (kEpilogue == Epilogue::kGate) y = Output::widen(to) * y;
    if constexpr (kEpilogue == Epilogue::kGeluTanh) y = gelu_tanh(y);
    if constexpr (kEpilogue == Epilogue::kSilu) y = silu(y);
    Output::store(y, to);
  }
}

// Vectors of a tile; at(i) is where the i-th goes.
template <kosine::Epilogue kEpilogue, int N, class At>
[[gnu::always_inline]] inline void finish(Vec (&y)[N], void* out, At at) {
  using Phi = std::conditional_t<Dot::kInBytes, PhiForBytes, PhiForFloats>;
  if constexpr (kEpilogue == kosine::Epilogue::kGelu) gelu<Phi>(y);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) finish_one<kEpilogue>(y[i], out, at(i));
}

}  // namespace
