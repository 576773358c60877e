// Products of floats: a word is one float.
#pragma once

#include "kernels.h"

namespace {

struct FloatDot {
  using Activation = float;
  using Words = Vec;
  static constexpr kosine::Dtype kDtype = kosine::Dtype::kFloat32;
  static constexpr bool kQuantized = false;
  static constexpr bool kInBytes = false;
  static constexpr std::size_t kPlanes = 1;
  static constexpr std::size_t kStep = 1;
  static constexpr std::size_t kVectorBytes = sizeof(Vec);  // of packed weight, for one vector
  using Weight = float;  // before packing
  using Packed = float;

  static Words load(const char* p) { return Vec::load(reinterpret_cast<const float*>(p)); }
  static Words broadcast(const char* p) { return Vec::all(*reinterpret_cast<const float*>(p)); }
  static Vec add_product(Vec acc, Words a, Words b) { return fma(a, b, acc); }
  static void store(Vec x, Activation* p) { x.store(p); }
  static Vec widen(const Activation* p) { return Vec::load(p); }
  static Packed round(Weight x) { return x; }
};

}  // namespace
