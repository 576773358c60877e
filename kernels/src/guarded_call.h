// One call of a kernel in buffers of its own, between pages that nothing is mapped to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "arena.h"
#include "cpu.h"

namespace kosine {

constexpr std::size_t kArenaBytes = std::size_t{1} << 30;  // a limit: guarded buffers map alone

// One table and the guarded buffers of one call.
class GuardedCall {
 public:
  GuardedCall(const std::string& dtype, const std::string& isa, const std::string& guard)
      : kernels(select_kernels(dtype_named(dtype), isa)), arena_(kArenaBytes, guard_named(guard)) {
    if (guard_named(guard) == Guard::kNone) throw std::invalid_argument("guard is 'none'");
  }

  const Kernels& kernels;

  // Elements between rows of activations.
  std::size_t activation_stride(std::size_t width) const {
    return kernels.planes * kernels.row_elements(kernels.quantized ? round_up(width, 16) : width);
  }

  // (rows, width) floats as activations.
  char* activations(const float* from, std::size_t rows, std::size_t width, const float* smooth) {
    const std::size_t whole = kernels.quantized ? round_up(width, 16) : width;
    const std::size_t stride = activation_stride(width);
    char* to = arena_.take<char>(rows * stride * kernels.activation);
    if (kernels.quantized) {
      kernels.round({.x = floats(from, rows, width, whole),
                     .ldx = whole,
                     .rows = rows,
                     .width = whole,
                     .smooth = smooth == nullptr ? nullptr : floats(smooth, 1, width, whole),
                     .out = to,
                     .ldo = stride});
      return to;
    }
    return stored(from, rows, width, stride, kernels.activation, to);
  }

  // (rows, width) floats one by one as elements of so many bytes: floats, or bfloat16 of two. Rows
  // are `stride` elements apart.
  char* stored(const float* from, std::size_t rows, std::size_t width, std::size_t stride,
               std::size_t element, char* to = nullptr) {
    if (to == nullptr) to = arena_.take<char>(rows * stride * element);
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < width; ++j) {
        put(to + (i * stride + j) * element, from[i * width + j], element);
      }
    }
    return to;
  }

  float* floats(const float* from, std::size_t rows, std::size_t width, std::size_t stride) {
    auto* to = arena_.take<float>(rows * stride);
    for (std::size_t i = 0; i < rows && from != nullptr; ++i) {
      std::memcpy(to + i * stride, from + i * width, width * sizeof(float));
    }
    return to;
  }

  char* room(std::size_t bytes) { return arena_.take<char>(bytes); }

  static float get(const char* at, std::size_t element) {
    if (element == sizeof(float)) return read<float>(at);
    const std::uint32_t bits = static_cast<std::uint32_t>(read<std::uint16_t>(at)) << 16;
    return read<float>(reinterpret_cast<const char*>(&bits));
  }

 private:
  template <class T>
  static T read(const char* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }

  static void put(char* at, float value, std::size_t element) {
    if (element == sizeof(float)) {
      std::memcpy(at, &value, sizeof value);
      return;
    }
    auto bits = read<std::uint32_t>(reinterpret_cast<const char*>(&value));
    bits += 0x7fff + (bits >> 16 & 1);  // to nearest even; numpy's NaN stays one
    const auto upper = static_cast<std::uint16_t>(bits >> 16);
    std::memcpy(at, &upper, sizeof upper);
  }

  Arena arena_;
};

}  // namespace kosine
