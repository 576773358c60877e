// Rows of floats as whole numbers of 8 or 15 bits, and where the slices of a row lie.
//
// A row of more than 1024 columns is cut into slices of at most 512, multiples of 64, as even as
// they can be. Each has a scale and a zero point of its own, which stand behind its numbers:
//
//     numbers of slice 0 | scale, zero | numbers of slice 1 | scale, zero | ...
//                          64 bytes                           64 bytes
//
//     int8     x ~ (byte - zero) * scale      scale = (max - min) / 255     zero = round(-min / scale)
//     w8a16    x ~ word * scale               scale = max|x| / 16383        zero = 0
//
// The range always includes 0. A slice of nothing but (almost) zeros has scale 1. Where any number
// of a slice is not finite the scale is NaN: rounding would hide it.
//
// Where bytes are all that is multiplied, a word is two of them, word + 16384 = 256 upper + lower:
// a row is two planes then, rows of bytes as above, the second half a stride behind the first.
//
// Narrow slices are rounded more finely, and their scales take time. It is the feed-forward's rows
// that gain by them: few large numbers among many small ones. Of 1024 columns sums of words are
// still exact in int32: 16383 * 127 * 1024 < 2^31.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace {

constexpr std::size_t kDepthStep = 64;
constexpr std::size_t kMostWhole = 1024;
constexpr std::size_t kMostSlice = 512;
constexpr std::size_t kTailBytes = 64;  // a cache line: scale, zero
constexpr int kWordZeroBits = 14;       // 2^14 makes a word unsigned

struct Tail {
  float scale;
  float zero;
};

// The slices of a row of `depth`, a multiple of kDepthStep.
struct Slices {
  std::size_t depth;
  std::size_t count;
  std::size_t width;  // of each but the last, which may be narrower

  explicit constexpr Slices(std::size_t columns) : depth(0), count(0), width(0) {
    // In 32 bits, where a division is fast.
    constexpr unsigned kWholeUnits = kMostWhole / kDepthStep, kMostUnits = kMostSlice / kDepthStep;
    const auto units = static_cast<unsigned>((columns + kDepthStep - 1) / kDepthStep);
    if (units == 0) return;
    const unsigned parts = units <= kWholeUnits ? 1 : (units + kMostUnits - 1) / kMostUnits;
    const unsigned each = (units + parts - 1) / parts;
    depth = units * kDepthStep;
    width = each * kDepthStep;
    count = (units + each - 1) / each;  // rounding up may have left nothing for a last one
  }
  constexpr std::size_t width_of(std::size_t slice) const {
    const std::size_t begin = slice * width;
    return depth - begin < width ? depth - begin : width;
  }
};

// Smallest and largest of a slice, zero included, and a sum that is NaN unless all are finite.
struct Range {
  Vec low = Vec::zero();
  Vec high = Vec::zero();
  Vec poison = Vec::zero();

  void add(Vec x) {
    low = min(low, x);
    high = max(high, x);
    poison = fma(x, Vec::zero(), poison);
  }
  void add(const Range& other) {
    low = min(low, other.low);
    high = max(high, other.high);
    poison = poison + other.poison;
  }
};

struct Step {
  float scale;
  float inverse;
  float zero;
};

constexpr float kSmallestRange = 1e-30f;  // below it a slice is all zeros

inline Step byte_step(const Range& range) {
  const float low = -largest(Vec::zero() - range.low);
  const float width = largest(range.high) - low;
  const float poison = sum(range.poison);
  if (!(width > kSmallestRange) || poison != 0) return {1.0f + poison, 1.0f, 0.0f};
  const float scale = width / 255.0f;
  const float inverse = 1.0f / scale;
  return {scale, inverse, __builtin_rintf(-low * inverse)};
}

inline Step word_step(const Range& range) {
  const float most = largest(max(range.high, Vec::zero() - range.low));
  const float poison = sum(range.poison);
  if (!(most > kSmallestRange) || poison != 0) return {1.0f + poison, 1.0f, 0.0f};
  const float scale = most / 16383.0f;
  return {scale, 1.0f / scale, 0.0f};
}

// One row of `width` numbers, a multiple of 16, to Slices(width): value(i) gives a vector of them
// from column i on. `smooth` may be null; `plane` is half the stride of `out`.
template <class Dot, class Value>
inline void quantize_row(Value value, std::size_t width, const float* smooth,
                         typename Dot::Activation* out, std::size_t plane) {
  constexpr std::size_t kLanes = Vec::kLanes;
  constexpr std::size_t kChains = 4;  // that do not wait for one another
  const Slices slices(width);
  float row[kMostWhole];
  for (std::size_t s = 0; s < slices.count; ++s) {
    const std::size_t begin = s * slices.width;
    const std::size_t room = slices.width_of(s);
    const std::size_t count = width - begin < room ? width - begin : room;
    Range ranges[kChains];
    const auto take = [&](Range& range, std::size_t i) {
      Vec x = value(begin + i);
      if (smooth != nullptr) x = x * Vec::load(smooth + begin + i);
      range.add(x);
      x.store(row + i);
    };
    std::size_t i = 0;
    for (; i + kChains * kLanes <= count; i += kChains * kLanes) {
#pragma GCC unroll 4
      for (std::size_t j = 0; j < kChains; ++j) take(ranges[j], i + j * kLanes);
    }
    for (; i < count; i += kLanes) take(ranges[0], i);
    for (std::size_t j = 1; j < kChains; ++j) ranges[0].add(ranges[j]);
    const Step step = Dot::step_of(ranges[0]);
    const Vec inverse = Vec::all(step.inverse);
    for (i = 0; i < count; i += kLanes) {
      Dot::store(Vec::load(row + i) * inverse, step, out + i, plane);
    }
    for (i = count; i < room; i += kLanes) Dot::store(Vec::zero(), step, out + i, plane);
    out += room;
    const Tail tail{step.scale, step.zero};
    __builtin_memcpy(out, &tail, sizeof tail);
    out += kTailBytes / sizeof *out;
  }
}

template <class Bytes, kosine::Dtype kIn>
struct WholeDot {
  using Activation = typename Bytes::Activation;
  static constexpr kosine::Dtype kDtype = kIn;
  static constexpr bool kQuantized = true;
  static constexpr bool kInBytes = kIn == kosine::Dtype::kInt8;
  static constexpr std::size_t kPlanes = kInBytes ? 1 : Bytes::kWordPlanes;

  static Step step_of(const Range& range) {
    return kInBytes ? byte_step(range) : word_step(range);
  }
  static void store(Vec x, const Step& step, Activation* p, std::size_t plane) {
    if constexpr (kInBytes) {
      Bytes::store_bytes(x, static_cast<int>(step.zero), p);
    } else {
      Bytes::store_words(x, p, plane);
    }
  }
};

template <class Bytes>
using ByteDot = WholeDot<Bytes, kosine::Dtype::kInt8>;
template <class Bytes>
using WordDot = WholeDot<Bytes, kosine::Dtype::kW8A16>;

}  // namespace
