// Sums of products of bytes in tiles: int32, and what a slice of the depth makes of them.
//
// A part of the depth is a slice of the rows (quantize.h), sixteen steps of 64 at most. Its integers
// become floats, and are added to those of the slices before, while the tiles multiply the next
// block. Panels are those of the vectors (pack_int8.h): sixteen of their words are the two tiles of
// a step side by side.
#pragma once

#include "pack_int8.h"

#include "amx_blocks.h"
#include "epilogue.h"
#include "kernels.h"

namespace {

// How the two tiles of a step lie in a panel.
constexpr std::size_t kWeightStride = 2 * kTileRowBytes;
constexpr std::size_t kWeightNext = kTileRowBytes;
static_assert(kDepthStep == kTileRowBytes && kMostWhole == 2 * kPartSteps * kDepthStep);
static_assert(kPanel * Int8::kStep == kWeightStride);

template <int C, int A, int B>
[[gnu::always_inline]] inline void add_product() {
  tile_dot_bytes<C, A, B>();
}

struct Parts {
  static constexpr bool kCarried = false;

  explicit Parts(std::size_t depth) : shape(depth), steps(shape.slices.depth / kDepthStep) {}
  Shape shape;
  std::size_t steps;

  std::size_t panel_bytes() const { return shape.panel_bytes; }
  std::size_t count(bool) const { return shape.slices.count; }
  Part part(std::size_t i, std::size_t count) const {
    const std::size_t begin = i * shape.slices.width;
    return {i, begin / kDepthStep, (begin + shape.slices.width_of(i)) / kDepthStep,
            begin + i * kTailBytes, i + 1 == count};
  }
};

// The integers of a block (rows, planes, kPanel), which are gone by the time that the next one's are
// written, and what its slices have added up to.
struct Place {
  std::int32_t* sums;
  float* totals;

  Place at(std::size_t number) const { return {sums + Dot::kPlanes * number, totals + number}; }
};
class Room {
 public:
  Place block(std::size_t i) { return {sums_, totals_ + i * kBlock}; }

 private:
  alignas(kLine) std::int32_t sums_[kBlock];
  alignas(kLine) float totals_[kGroupBlocks * kBlock];
};

// Rows of a panel of the result on their way from integers, as many at a time as there is time for.
template <kosine::Epilogue kEpilogue>
class Finisher {
 public:
  Finisher() = default;
  Finisher(Place place, const kosine::GemmArgs& args, const Parts& parts, const Piece& piece)
      : place_(place),
        first_(piece.part.index == 0),
        last_(piece.part.last),
        out_(static_cast<Out*>(args.out) + piece.row * args.ldo + piece.panel * kPanel),
        ldo_(args.ldo),
        left_(piece.count) {
    const auto both = [](const float* from, Vec(&to)[2]) {
      to[0] = Vec::load(from);
      to[1] = Vec::load(from + Vec::kLanes);
    };
    const Shape& shape = parts.shape;
    const char* const panel =
        static_cast<const char*>(args.weight) + piece.panel * shape.panel_bytes;
    both(shape.column_sums(panel, piece.part.index), sums_);
    both(shape.column_scales(panel), scales_);
    both(args.bias + piece.panel * kPanel, bias_);
    lda_ = args.lda * sizeof(Dot::Activation);
    behind_ = static_cast<const char*>(args.a) + piece.row * lda_ + piece.part.at +
              shape.slices.width_of(piece.part.index);
  }

  std::size_t left() const { return left_; }
  // A copy has what was left. Nothing else is cleared, which would take as long as the copy.
  void hand_over() { left_ = 0; }

  [[gnu::always_inline]] void step(std::size_t count) {
    count = count < left_ ? count : left_;
    left_ -= count;
    for (; count != 0; --count) {
      const SliceFactors factors(behind_);
      Vec y[2];
#pragma GCC unroll 2
      for (std::size_t c = 0; c < 2; ++c) {
        const std::size_t at = c * Vec::kLanes;
        const Vec part = factors.part(place_.sums + at, sums_[c]);
        const Vec total = first_ ? part * factors.scale
                                 : fma(part, factors.scale, Vec::load(place_.totals + at));
        if (last_) {
          y[c] = fma(total, scales_[c], bias_[c]);
        } else {
          total.store(place_.totals + at);
        }
      }
      if (last_) finish<kEpilogue>(y, out_, [](std::size_t i) { return i * Vec::kLanes; });
      place_ = place_.at(kPanel);
      behind_ += lda_;
      out_ += ldo_;
    }
  }

 private:
  using Out = typename OutputOf<kEpilogue>::Type;

  Place place_{};
  bool first_ = true;
  bool last_ = true;
  const char* behind_ = nullptr;  // the slice of the next row
  std::size_t lda_ = 0;           // bytes
  Out* out_ = nullptr;
  std::size_t ldo_ = 0;
  std::size_t left_ = 0;
  Vec sums_[2] = {Vec::zero(), Vec::zero()};  // of the columns
  Vec scales_[2] = {Vec::zero(), Vec::zero()};
  Vec bias_[2] = {Vec::zero(), Vec::zero()};
};

}  // namespace
