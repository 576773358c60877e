// An encoder's weights, checked and packed for one table of kernels.
#pragma once

#include <cstddef>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "steps.h"
#include "tensors.h"

namespace kosine {

// activations (., depth) x weight (depth, columns) + bias, in packed panels.
struct Linear {
  const Kernels* kernels = nullptr;  // whose activations it reads
  const char* weight = nullptr;
  const float* bias = nullptr;   // padded with zeros to whole panels
  std::size_t depth = 0;         // padded to the table's k_step
  std::size_t columns = 0;       // before padding
  std::size_t panels = 0;
  std::size_t panel_bytes = 0;
};

// What makes floats the activations of a product.
struct Rounding {
  const Kernels* kernels = nullptr;
  const float* smooth = nullptr;  // (width,), see RoundArgs
};

// The steps of steps.h with their weights packed. `x` are the rows of the residual stream, and
// `input` the same as activations, which is what the next product reads.
namespace packed {

// x = word[ids] + position[positions]; a Norm must follow, which makes `input`.
struct Embed {
  const float* word;      // (vocab_size, width)
  const float* position;  // (num_positions, width), token type 0 added; one row where there are
                          // no positions
  std::size_t width;
};
// Of rows of floats; with `rms` around a mean of zero.
struct RowNorm {
  const float* gain;
  const float* bias;
  float eps;
  bool rms;
  std::size_t width;
};
// input = norm(x), and x too unless it keeps what it is.
struct Norm {
  RowNorm norm;
  bool keeps_x;
  Rounding rounding;
};
// x = input weight + bias, and `input`.
struct Project {
  Linear linear;
  Rounding rounding;
};
// x += attention(input qkv) output, or its norm
struct Attention {
  Linear qkv;
  Linear output;
  Rounding rounding;  // of the context
  std::size_t num_heads;            // of q
  std::size_t num_key_value_heads;  // which divides it
  std::size_t head_size;
  std::optional<RowNorm> query_norm;  // of each head, before it is turned
  std::optional<RowNorm> key_norm;
  const float* cos;    // (max_length, head_size / 2), or null: nothing is turned
  const float* sin;
  std::size_t behind;  // the farthest rows that a row sees
  std::size_t ahead;
  std::optional<RowNorm> norm;
  // (num_heads, 2 * reach + 1): what each head adds to scores, by the distance of the key from
  // -reach to reach; or null. Beyond it the ends count.
  const float* distances;
  std::size_t reach;

  // Whether q and k are normed or turned, as floats, before they are heads.
  bool changes_heads() const {
    return cos != nullptr || query_norm.has_value() || key_norm.has_value();
  }
};
// x += activation(input up) down, or (activation(input up) * (input gate)) down; or its norm
struct FeedForward {
  Linear up;
  std::optional<Linear> gate;  // cut into panels and slices like `up`
  // The way down is cut along its depth, so that a thread can run the feed-forward slice by
  // slice with the inner activations in its cache. Slice i reads the columns that panels
  // [i * slice_panels, ...) of `up` write. The cut is part of the arithmetic: it never changes.
  std::vector<Linear> down;
  Rounding rounding;  // of what the activation gives; smooth is for all slices
  std::size_t slice_panels;
  Epilogue activation;
  std::optional<RowNorm> norm;
};
// Rows of x become one for each sentence: `width` columns for each mode.
struct Pool {
  std::vector<Pooling> modes;
  std::size_t width;
};
struct Dense {
  Linear linear;
  Activation activation;
  bool use_residual;
};

}  // namespace packed

using PackedStep = std::variant<packed::Embed, packed::Norm, packed::Project, packed::Attention,
                                packed::FeedForward, packed::Pool, packed::Dense>;

struct Model {
  // Throws std::invalid_argument for steps in an impossible order, and for tensors that are
  // missing or do not fit; std::bad_alloc.
  //
  // Products of layers take the table `main`; those that are named in `bytes_only` take `bytes`,
  // which has the same panels and slices. A gate takes what `up` takes.
  Model(const Tensors& tensors, const std::vector<Step>& unpacked, const Kernels& main,
        const Kernels& bytes, const std::set<std::string>& bytes_only, const Kernels& float32,
        Guard guarded);

  const Kernels& kernels;
  const Kernels& bytes_kernels;
  const Kernels& floats;  // the float32 table for what follows pooling
  Guard guard;
  std::vector<PackedStep> steps;
  std::size_t vocab_size, num_positions;
  bool has_positions;
  std::size_t max_length;  // of a sentence, where steps turn rows by their place
  std::size_t hidden;      // width of the rows that are pooled
  std::size_t dim;

  // The most that any step needs in a row.
  struct Widths {
    std::size_t x = 0;        // floats
    std::size_t branch = 0;   // floats: what is normed before x has it added
    std::size_t input = 0;    // bytes of activations
    std::size_t qkv = 0;      // bytes of heads, or of the floats that become heads
    std::size_t context = 0;  // bytes of activations
    std::size_t slice = 0;    // bytes of a feed-forward's inner activations: one slice, and all
    std::size_t inner = 0;
    std::size_t staged_slice = 0;  // floats that are yet to be rounded: of one slice or a
    std::size_t staged = 0;        // context, and of all slices or a context
    std::size_t pooled = 0;        // floats
    std::size_t head = 0;
  };
  Widths widths;

  std::size_t bytes() const { return arena_.capacity(); }

 private:
  class Packer;
  Arena arena_;
};

}  // namespace kosine
