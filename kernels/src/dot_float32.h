// Products of floats: a word is one float.
#pragma once

#include "kernels.h"

namespace {

struct FloatDot {
  using Activation = float;
  using Words = Vec;
  static constexpr kosine::Dtype kDtype = kosine::Dtype::kFloat32;
  static constexpr std::size_t kStep = 1;

  static Words load(const char* p) { return Vec::load(reinterpret_cast<const float*>(p)); }
  static Words broadcast(const char* p) { return Vec::all(*reinterpret_cast<const float*>(p)); }
  static Vec add_product(Vec acc, Words a, Words b) { return fma(a, b, acc); }
  static void store(Vec x, Activation* p) { x.store(p); }
  static Vec widen(const Activation* p) { return Vec::load(p); }
  static Activation round(float x) { return x; }
};

}  // namespace
