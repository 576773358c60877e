// What becomes of a vector of a product, bias added, on its way out.
#pragma once

#include "kernels.h"
#include "rowwise.h"

namespace {

// What an epilogue writes.
template <kosine::Epilogue kEpilogue>
struct OutputOf {
  using Type = float;
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

// `at`: elements from the start of `out`.
template <kosine::Epilogue kEpilogue>
[[gnu::always_inline]] inline void finish(Vec y, void* out, std::size_t at) {
  using kosine::Epilogue;
  if constexpr (kEpilogue == Epilogue::kStore) {
    y.store(static_cast<float*>(out) + at);
  } else if constexpr (kEpilogue == Epilogue::kAdd) {
    float* sum = static_cast<float*>(out) + at;
    (Vec::load(sum) + y).store(sum);
  } else if constexpr (kEpilogue == Epilogue::kGate) {
    auto* scaled = static_cast<Output::Activation*>(out) + at;
    Output::store(Output::widen(scaled) * y, scaled);
  } else if constexpr (kEpilogue == Epilogue::kGeluTanh) {
    Output::store(gelu_tanh(y), static_cast<Output::Activation*>(out) + at);
  } else if constexpr (kEpilogue == Epilogue::kSilu) {
    Output::store(silu(y), static_cast<Output::Activation*>(out) + at);
  } else {
    Output::store(gelu(y), static_cast<Output::Activation*>(out) + at);
  }
}

}  // namespace
