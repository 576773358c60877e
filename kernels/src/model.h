// An encoder's weights, checked and packed for one table of kernels.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "arena.h"
#include "kernels.h"
#include "steps.h"

namespace kosine {

// A float32 array in C order, by its canonical name.
struct Tensor {
  const float* data;
  std::vector<std::size_t> shape;
};
using Tensors = std::map<std::string, Tensor>;

// activations (., depth) x weight (depth, columns) + bias, in packed panels.
struct Linear {
  const char* weight = nullptr;
  const float* bias = nullptr;   // padded with zeros to whole panels
  std::size_t depth = 0;         // padded to the table's k_step
  std::size_t columns = 0;       // before padding
  std::size_t panels = 0;
  std::size_t panel_bytes = 0;
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
// input = layer_norm(x), and x too unless it keeps what it is.
struct Norm {
  const float* gain;
  const float* bias;
  float eps;
  std::size_t width;
  bool keeps_x;
};
// x = input weight + bias, and `input`.
struct Project {
  Linear linear;
};
// x += attention(input qkv) output
struct Attention {
  Linear qkv;
  Linear output;
  std::size_t num_heads;
  std::size_t head_size;
  const float* cos;    // (max_length, head_size / 2), or null: nothing is turned
  const float* sin;
  std::size_t window;  // the farthest rows that a row sees
  // (num_heads, 2 * reach + 1): what each head adds to scores, by the distance of the key from
  // -reach to reach; or null. Beyond it the ends count.
  const float* distances;
  std::size_t reach;
};
// x += gelu(input up) down, or (gelu(input up) * (input gate)) down
struct FeedForward {
  Linear up;
  std::optional<Linear> gate;  // cut into panels and slices like `up`
  // The way down is cut along its depth, so that a thread can run the feed-forward slice by
  // slice with the inner activations in its cache. Slice i reads the columns that panels
  // [i * slice_panels, ...) of `up` write. The cut is part of the arithmetic: it never changes.
  std::vector<Linear> down;
  std::size_t slice_panels;
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
  Model(const Tensors& tensors, const std::vector<Step>& unpacked, const Kernels& table,
        const Kernels& float_table, Guard guarded);

  const Kernels& kernels;
  const Kernels& floats;  // the float32 table for what follows pooling
  Guard guard;
  std::vector<PackedStep> steps;
  std::size_t vocab_size, num_positions;
  bool has_positions;
  std::size_t max_length;  // of a sentence, where steps turn rows by their place
  std::size_t dim;

  // The most columns that any step needs.
  struct Widths {
    std::size_t rows = 0;     // of x
    std::size_t qkv = 0;
    std::size_t context = 0;
    std::size_t slice = 0;    // of a feed-forward's inner activations: one slice, and all of them
    std::size_t inner = 0;
    std::size_t pooled = 0;
    std::size_t head = 0;
  };
  Widths widths;

  std::size_t bytes() const { return arena_.capacity(); }

 private:
  class Packer;
  Arena arena_;
};

}  // namespace kosine
