// Sums of bfloat16 products in tiles: floats, which are the result but for its epilogue.
//
// The sums of a block may be put by in memory between parts of the depth, and taken up again, which
// changes no bit of them.
//
// Accumulator bounds: in a step the products of even and of odd depth are summed apart, 16 each,
// in float32, and the two sums are added to c. A sum of K products is off by at most about
// (17 + K / 32) * 2^-24 of the sum of their magnitudes.
#pragma once

#include "amx_pack.h"

#include "amx_blocks.h"
#include "epilogue.h"
#include "kernels.h"

namespace {

// How the two tiles of a step lie in a panel.
constexpr std::size_t kWeightStride = kTileRowBytes;
constexpr std::size_t kWeightNext = kTileBytes;

template <int C, int A, int B>
[[gnu::always_inline]] inline void add_product() {
  tile_dot<C, A, B>();
}

// The depth of a product in parts, as even as they can be.
struct Parts {
  static constexpr bool kCarried = true;     // tiles begin with the sums of the part before
  static constexpr std::size_t kWholeSteps = 12;  // a panel of 24 KiB stays in L1 without a cut

  explicit Parts(std::size_t depth) : steps(depth / kDepthStep) {}
  std::size_t steps;

  std::size_t panel_bytes() const { return steps * kStepBytes; }
  // A block of rows by itself reads the panel once: there is nothing to keep.
  std::size_t count(bool alone) const {
    return alone || steps <= kWholeSteps ? 1 : (steps + kPartSteps - 1) / kPartSteps;
  }
  Part part(std::size_t i, std::size_t count) const {
    const std::size_t from = steps * i / count;
    return {i, from, steps * (i + 1) / count, from * kTileRowBytes, i + 1 == count};
  }
};

// The sums of a block, and those of a group's blocks.
struct Place {
  float* sums;

  Place at(std::size_t number) const { return {sums + number}; }
};
class Room {
 public:
  Place block(std::size_t i) { return {sums_ + i * kBlock}; }

 private:
  alignas(kLine) float sums_[kGroupBlocks * kBlock];
};

// Rows of a panel of the result on their way from `c`, as many at a time as there is time for.
template <kosine::Epilogue kEpilogue>
class Finisher {
 public:
  Finisher() = default;
  Finisher(Place place, const kosine::GemmArgs& args, const Parts&, const Piece& piece)
      : c_(place.sums),
        out_(static_cast<Out*>(args.out) + piece.row * args.ldo + piece.panel * kPanel),
        ldo_(args.ldo),
        left_(piece.count),
        bias_{Vec::load(args.bias + piece.panel * kPanel),
              Vec::load(args.bias + piece.panel * kPanel + Vec::kLanes)} {}

  std::size_t left() const { return left_; }
  // A copy has what was left. Nothing else is cleared, which would take as long as the copy.
  void hand_over() { left_ = 0; }

  [[gnu::always_inline]] void step(std::size_t count) {
    count = count < left_ ? count : left_;
    left_ -= count;
    for (; count != 0; --count) {
      Vec y[] = {Vec::load(c_) + bias_[0], Vec::load(c_ + Vec::kLanes) + bias_[1]};
      finish<kEpilogue>(y, out_, [](std::size_t i) { return i * Vec::kLanes; });
      c_ += kPanel;
      out_ += ldo_;
    }
  }

 private:
  using Out = typename OutputOf<kEpilogue>::Type;

  const float* c_ = nullptr;
  Out* out_ = nullptr;
  std::size_t ldo_ = 0;
  std::size_t left_ = 0;
  Vec bias_[2] = {Vec::zero(), Vec::zero()};
};

}  // namespace
