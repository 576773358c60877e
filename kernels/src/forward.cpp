#include "forward.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <variant>

#include "pooling.h"

namespace kosine {
namespace {

// What the members of a team do between two meetings. Between meetings a member writes only its
// own share: rows of a row-wise step, panels of columns of a product, heads of attention.
class Walk {
 public:
  Walk(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& work,
       const Member& member)
      : model_(model),
        batch_(batch),
        chunk_(chunk),
        work_(work),
        member_(member),
        pooled_(work.pooled),
        pooled_next_(work.pooled_next) {}

  void walk() {
    for (const PackedStep& step : model_.steps) {
      std::visit([this](const auto& one) { take(one); }, step);
    }
    normalise_sentences();
  }

 private:
  using Range = Member::Range;

  Range own_rows() const { return member_.share_of(chunk_.rows); }
  Range own_sentences() const { return member_.share_of(chunk_.sentences.size()); }

  void take(const packed::Embed& step) {
    const auto [begin, end] = own_rows();
    std::size_t row = 0;
    for (const Sentence& sentence : chunk_.sentences) {
      for (std::size_t i = 0; i < sentence.length; ++i, ++row) {
        if (row < begin || row >= end) continue;
        const std::size_t token = sentence.begin + i;
        const float* word = step.word + static_cast<std::size_t>(batch_.ids[token]) * step.width;
        const float* position =
            step.position +
            (model_.has_positions ? static_cast<std::size_t>(batch_.positions[token]) : 0) *
                step.width;
        float* x = work_.x.row(row);
        for (std::size_t j = 0; j < step.width; ++j) x[j] = word[j] + position[j];
      }
    }
    member_.meet();
  }

  void take(const packed::Norm& step) {
    const auto [begin, end] = own_rows();
    const Kernels& kernels = *step.rounding.kernels;
    kernels.layer_norm({
        .x = work_.x.row(begin),
        .ldx = work_.x.stride,
        .rows = end - begin,
        .width = step.norm.width,
        .gain = step.norm.gain,
        .bias = step.norm.bias,
        .eps = step.norm.eps,
        .rms = step.norm.rms,
        .keeps_x = step.keeps_x,
        .smooth = step.rounding.smooth,
        .rounded = work_.input.row(begin),
        .ldr = work_.input.stride / kernels.activation,
    });
    clear_padding(kernels, work_.input, step.norm.width, {begin, end});
    member_.meet();
  }

  void take(const packed::Project& step) {
    multiply(work_.input.data, work_.input.stride, step.linear, Epilogue::kStore, work_.x);
    member_.meet();
    round(step.rounding, work_.x, step.linear.columns, work_.input, own_rows());
    member_.meet();
  }

  void take(const packed::Attention& step) {
    multiply(work_.input.data, work_.input.stride, step.qkv, Epilogue::kStore, work_.qkv);
    member_.meet();
    if (member_.size != 1 && changes_heads(step)) {
      change_heads(step);
      member_.meet();
    }
    attend(step);
    member_.meet();
    const std::size_t width = step.num_heads * step.head_size;
    if (model_.kernels.staged) {
      if (member_.size != 1) round(step.rounding, work_.staged, width, work_.context, own_rows());
    } else {
      clear_padding(model_.kernels, work_.context, width, own_rows());
    }
    member_.meet();
    const bool normed = step.norm.has_value();
    multiply(work_.context.data, work_.context.stride, step.output,
             normed ? Epilogue::kStore : Epilogue::kAdd, normed ? work_.branch : work_.x);
    member_.meet();
    if (normed) add_branch(*step.norm);
  }

  // x += norm(branch), which all members have written.
  void add_branch(const packed::RowNorm& norm) {
    const auto rows = own_rows();
    norm_rows(norm, work_.branch, rows.begin, rows.end - rows.begin, work_.x, true);
    member_.meet();
  }

  void norm_rows(const packed::RowNorm& norm, const Matrix<float>& x, std::size_t row,
                 std::size_t count, const Matrix<float>& out, bool adds) {
    model_.kernels.norm_rows({
        .x = x.row(row),
        .ldx = x.stride,
        .rows = count,
        .width = norm.width,
        .gain = norm.gain,
        .bias = norm.bias,
        .eps = norm.eps,
        .rms = norm.rms,
        .out = out.row(row),
        .ldo = out.stride,
        .adds = adds,
    });
  }

  static bool changes_heads(const packed::Attention& step) {
    return step.cos != nullptr || step.query_norm.has_value() || step.key_norm.has_value();
  }

  // A head of k may belong to several of q, so a team changes all before any of them is read.
  void change_heads(const packed::Attention& step) {
    std::size_t item = 0;
    std::size_t row = 0;
    for (const Sentence& sentence : chunk_.sentences) {
      for (std::size_t head = 0; head < step.num_heads + step.num_key_value_heads; ++head, ++item) {
        if (item % member_.size == member_.rank) change_head(step, row, sentence.length, head);
      }
      row += sentence.length;
    }
  }

  // The heads of q and then those of k, normed and turned by their place.
  void change_head(const packed::Attention& step, std::size_t row, std::size_t length,
                   std::size_t head) {
    const auto& norm = head < step.num_heads ? step.query_norm : step.key_norm;
    const Matrix<float> x{work_.qkv.data + head * step.head_size, work_.qkv.stride};
    if (norm.has_value()) norm_rows(*norm, x, row, length, x, false);
    if (step.cos == nullptr) return;
    model_.kernels.turn({
        .x = x.row(row),
        .ld = x.stride,
        .length = length,
        .head_size = step.head_size,
        .cos = step.cos,
        .sin = step.sin,
    });
  }

  // A team shares out whole heads, and the rows of long sentences where those do not come out even.
  std::size_t parts_of(std::size_t length, std::size_t heads) const {
    constexpr std::size_t kFewestRows = 128;  // below, preparing the keys takes too much of a part
    const std::size_t even = member_.size / std::gcd(heads, member_.size);
    return std::clamp<std::size_t>(length / kFewestRows, 1, even);
  }

  // Each member takes parts of heads of sentences.
  void attend(const packed::Attention& step) {
    const Kernels& kernels = model_.kernels;
    const std::size_t width = step.num_heads * step.head_size;
    const std::size_t shared_width = step.num_key_value_heads * step.head_size;
    const std::size_t sharers = step.num_heads / step.num_key_value_heads;
    std::size_t item = 0;
    std::size_t row = 0;
    for (const Sentence& sentence : chunk_.sentences) {
      if (member_.size == 1 && changes_heads(step)) {
        const std::size_t heads = step.num_heads + step.num_key_value_heads;
        for (std::size_t head = 0; head < heads; ++head) {
          change_head(step, row, sentence.length, head);
        }
      }
      const std::size_t parts = parts_of(sentence.length, step.num_heads);
      for (std::size_t i = 0; i < step.num_heads * parts; ++i, ++item) {
        if (item % member_.size != member_.rank) continue;
        const std::size_t head = i / parts;
        const float* q = work_.qkv.row(row) + head * step.head_size;
        const float* k = work_.qkv.row(row) + width + head / sharers * step.head_size;
        void* out = kernels.staged
                        ? static_cast<void*>(work_.staged.row(row) + head * step.head_size)
                        : work_.context.row(row) + head * step.head_size * kernels.activation;
        kernels.attention({
            .q = q,
            .k = k,
            .v = k + shared_width,
            .ld = work_.qkv.stride,
            .length = sentence.length,
            .head_size = step.head_size,
            .behind = step.behind,
            .ahead = step.ahead,
            .distances = step.distances == nullptr
                             ? nullptr
                             : step.distances + head * (2 * step.reach + 1),
            .reach = step.reach,
            .part = i % parts,
            .parts = parts,
            .out = out,
            .ldo = kernels.staged ? work_.staged.stride
                                     : work_.context.stride / kernels.activation,
            .scratch = work_.scratch(member_.rank),
        });
      }
      // Alone, while the sentence is in the cache.
      if (kernels.staged && member_.size == 1) {
        round(step.rounding, work_.staged, width, work_.context, {row, row + sentence.length});
      }
      row += sentence.length;
    }
  }

  // Alone, a thread takes one slice of the feed-forward up and down before the next; a team
  // would have to meet between slices, and rather goes all the way up first. The sums are the
  // same: slice after slice is added to x either way.
  void take(const packed::FeedForward& step) {
    const bool staged = step.up.kernels->staged;
    const std::size_t slices = step.down.size();
    const std::size_t panel = step.up.kernels->panel;
    if (member_.size == 1) {
      for (std::size_t i = 0; i < slices; ++i) {
        const Linear up = slice_of(step.up, step, i);
        inner_product(up, step.activation, staged);
        if (step.gate.has_value()) {
          inner_product(slice_of(*step.gate, step, i), Epilogue::kGate, staged);
        }
        if (staged) {
          round(slice_rounding(step, i), work_.staged, up.panels * panel, work_.inner, own_rows());
        }
        multiply_down(step, i, work_.inner.data);
      }
      if (step.norm.has_value()) add_branch(*step.norm);
      return;
    }
    inner_product(step.up, step.activation, staged);
    // A member's panels of both products are the same.
    if (step.gate.has_value()) inner_product(*step.gate, Epilogue::kGate, staged);
    member_.meet();
    const std::size_t columns = step.slice_panels * panel;
    const std::size_t slice_bytes =
        step.up.kernels->row_elements(columns) * step.up.kernels->activation;
    for (std::size_t i = 0; staged && i < slices; ++i) {
      const Matrix<float> floats{work_.staged.data + i * columns, work_.staged.stride};
      const ActivationMatrix inner{work_.inner.data + i * slice_bytes, work_.inner.stride};
      round(slice_rounding(step, i), floats, slice_of(step.up, step, i).panels * panel, inner, own_rows());
    }
    if (staged) member_.meet();
    for (std::size_t i = 0; i < slices; ++i) {
      multiply_down(step, i, work_.inner.data + i * slice_bytes);
    }
    member_.meet();
    if (step.norm.has_value()) add_branch(*step.norm);
  }

  // Added to x, or to the rows that are normed before.
  void multiply_down(const packed::FeedForward& step, std::size_t slice, const char* inner) {
    const bool first = step.norm.has_value() && slice == 0;
    multiply(inner, work_.inner.stride, step.down[slice], first ? Epilogue::kStore : Epilogue::kAdd,
             step.norm.has_value() ? work_.branch : work_.x);
  }

  void inner_product(const Linear& linear, Epilogue epilogue, bool staged) {
    const char* input = work_.input.data;
    if (staged) {
      multiply(input, work_.input.stride, linear, epilogue, work_.staged);
    } else {
      multiply(input, work_.input.stride, linear, epilogue, work_.inner.data, work_.inner.stride,
               linear.kernels->activation);
    }
  }

  Linear slice_of(const Linear& whole, const packed::FeedForward& step, std::size_t slice) const {
    const std::size_t begin = slice * step.slice_panels;
    Linear part = whole;
    part.weight += begin * part.panel_bytes;
    part.bias += begin * part.kernels->panel;
    part.panels = std::min(step.slice_panels, part.panels - begin);
    return part;
  }

  static Rounding slice_rounding(const packed::FeedForward& step, std::size_t slice) {
    Rounding part = step.rounding;
    if (part.smooth != nullptr) part.smooth += slice * step.slice_panels * part.kernels->panel;
    return part;
  }

  // Pooling, the dense layers and normalising: each member for its share of the sentences.
  void take(const packed::Pool& step) {
    const auto [begin, end] = own_sentences();
    std::size_t row = 0;
    for (std::size_t i = 0; i < end; ++i) {
      const Sentence& sentence = chunk_.sentences[i];
      if (i >= begin) {
        keep_states(sentence, row, step.width);
        const std::size_t skip =
            batch_.skip == nullptr ? 0 : static_cast<std::size_t>(batch_.skip[sentence.index]);
        float* out = pooled_.row(i);
        for (Pooling mode : step.modes) {
          pool_rows(work_.x.row(row), work_.x.stride, sentence.length, skip, step.width, mode, out);
          out += step.width;
        }
      }
      row += sentence.length;
    }
  }

  // What pooling reads, for callers who read it too.
  void keep_states(const Sentence& sentence, std::size_t row, std::size_t width) {
    if (batch_.states == nullptr) return;
    for (std::size_t i = 0; i < sentence.length; ++i) {
      std::copy_n(work_.x.row(row + i), width, batch_.states + (sentence.begin + i) * width);
    }
  }

  void take(const packed::Dense& step) {
    const auto [begin, end] = own_sentences();
    apply_dense(step, model_.floats, pooled_, pooled_next_, begin, end);
    std::swap(pooled_, pooled_next_);
  }

  void normalise_sentences() {
    const auto [begin, end] = own_sentences();
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t index = chunk_.sentences[i].index;
      batch_.norms[index] =
          normalise_row(pooled_.row(i), model_.dim, batch_.vectors + index * model_.dim);
    }
  }

  void multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                const Matrix<float>& out) {
    multiply(a, stride, linear, epilogue, reinterpret_cast<char*>(out.data),
             out.stride * sizeof(float), sizeof(float));
  }

  // Strides in bytes; `element` are the bytes of one element of `out`.
  void multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                char* out, std::size_t out_stride, std::size_t element) {
    const Kernels& kernels = *linear.kernels;
    const auto [begin, end] = member_.share_of(linear.panels);
    // Of long texts as many rows at one time as stay in the L2 cache from panel to panel.
    const std::size_t most = 2 * kernels.chunk_rows;
    const std::size_t blocks = chunk_.rows > most ? chunk_.rows / kernels.chunk_rows : 1;
    for (std::size_t i = 0; i < blocks; ++i) {
      const std::size_t row = chunk_.rows * i / blocks;
      kernels.gemm({
          .a = a + row * stride,
          .lda = stride / kernels.activation,
          .rows = chunk_.rows * (i + 1) / blocks - row,
          .weight = linear.weight + begin * linear.panel_bytes,
          .bias = linear.bias + begin * kernels.panel,
          .depth = linear.depth,
          .panels = end - begin,
          .out = out + row * out_stride + begin * kernels.panel * element,
          .ldo = out_stride / element,
          .epilogue = epilogue,
          .scratch = work_.product_scratch(member_.rank),
      });
    }
  }

  void round(const Rounding& rounding, const Matrix<float>& x, std::size_t width,
             const ActivationMatrix& out, Range rows) {
    const Kernels& kernels = *rounding.kernels;
    kernels.round({
        .x = x.row(rows.begin),
        .ldx = x.stride,
        .rows = rows.end - rows.begin,
        .width = width,
        .smooth = rounding.smooth,
        .out = out.row(rows.begin),
        .ldo = out.stride / kernels.activation,
    });
    clear_padding(kernels, out, width, rows);
  }

  // Products read whole steps of the depth, and nothing else writes the columns that pad them.
  void clear_padding(const Kernels& kernels, const ActivationMatrix& matrix, std::size_t width,
                     Range rows) {
    if (kernels.quantized) return;  // rounding fills whole rows
    const std::size_t bytes =
        (round_up(width, kernels.k_step) - width) * kernels.activation;
    if (bytes == 0) return;
    for (std::size_t i = rows.begin; i < rows.end; ++i) {
      std::memset(matrix.row(i) + width * kernels.activation, 0, bytes);
    }
  }

  const Model& model_;
  const Batch& batch_;
  const Chunk& chunk_;
  Workspace& work_;
  const Member& member_;
  Matrix<float> pooled_, pooled_next_;
};

}  // namespace

void walk_steps(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& work,
                const Member& member) {
  Walk(model, batch, chunk, work, member).walk();
}

}  // namespace kosine
