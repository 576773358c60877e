#include "forward.h"

#include <algorithm>
#include <cstring>
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
    model_.kernels.layer_norm({
        .x = work_.x.row(begin),
        .ldx = work_.x.stride,
        .rows = end - begin,
        .width = step.width,
        .gain = step.gain,
        .bias = step.bias,
        .eps = step.eps,
        .keeps_x = step.keeps_x,
        .rounded = work_.input.at(begin, 0),
        .ldr = work_.input.stride,
    });
    clear_padding(work_.input, step.width);
    member_.meet();
  }

  void take(const packed::Project& step) {
    multiply(work_.input, step.linear, Epilogue::kStore, work_.x);
    member_.meet();
    // Up to a whole step of the depth: beyond its columns the product wrote zeros.
    const auto [begin, end] = own_rows();
    model_.kernels.round(work_.x.row(begin), work_.x.stride, end - begin,
                         round_up(step.linear.columns, model_.kernels.k_step),
                         work_.input.at(begin, 0), work_.input.stride);
    member_.meet();
  }

  void take(const packed::Attention& step) {
    multiply(work_.input, step.qkv, Epilogue::kStore, work_.qkv);
    member_.meet();
    attend(step);
    clear_padding(work_.context, step.num_heads * step.head_size);
    member_.meet();
    multiply(work_.context, step.output, Epilogue::kAdd, work_.x);
    member_.meet();
  }

  // Each member takes whole heads of whole sentences.
  void attend(const packed::Attention& step) {
    const std::size_t width = step.num_heads * step.head_size;
    std::size_t item = 0;
    std::size_t row = 0;
    for (const Sentence& sentence : chunk_.sentences) {
      for (std::size_t head = 0; head < step.num_heads; ++head, ++item) {
        if (item % member_.size != member_.rank) continue;
        float* q = work_.qkv.row(row) + head * step.head_size;
        if (step.cos != nullptr) {
          for (float* part : {q, q + width}) {
            model_.kernels.turn({
                .x = part,
                .ld = work_.qkv.stride,
                .length = sentence.length,
                .head_size = step.head_size,
                .cos = step.cos,
                .sin = step.sin,
            });
          }
        }
        model_.kernels.attention({
            .q = q,
            .k = q + width,
            .v = q + 2 * width,
            .ld = work_.qkv.stride,
            .length = sentence.length,
            .head_size = step.head_size,
            .window = step.window,
            .distances = step.distances == nullptr
                             ? nullptr
                             : step.distances + head * (2 * step.reach + 1),
            .reach = step.reach,
            .out = work_.context.at(row, head * step.head_size),
            .ldo = work_.context.stride,
            .scratch = work_.scratch(member_.rank),
        });
      }
      row += sentence.length;
    }
  }

  // Alone, a thread takes one slice of the feed-forward up and down before the next; a team
  // would have to meet between slices, and rather goes all the way up first. The sums are the
  // same: slice after slice is added to x either way.
  void take(const packed::FeedForward& step) {
    const std::size_t slices = step.down.size();
    if (member_.size == 1) {
      for (std::size_t i = 0; i < slices; ++i) {
        multiply(work_.input, slice_of(step.up, step, i), Epilogue::kGelu, work_.inner);
        if (step.gate.has_value()) {
          multiply(work_.input, slice_of(*step.gate, step, i), Epilogue::kGate, work_.inner);
        }
        multiply(work_.inner, step.down[i], Epilogue::kAdd, work_.x);
      }
      return;
    }
    multiply(work_.input, step.up, Epilogue::kGelu, work_.inner);
    // A member's panels of both products are the same.
    if (step.gate.has_value()) multiply(work_.input, *step.gate, Epilogue::kGate, work_.inner);
    member_.meet();
    for (std::size_t i = 0; i < slices; ++i) {
      ActivationMatrix inner = work_.inner;
      inner.data = inner.at(0, i * step.slice_panels * model_.kernels.panel);
      multiply(inner, step.down[i], Epilogue::kAdd, work_.x);
    }
    member_.meet();
  }

  Linear slice_of(const Linear& whole, const packed::FeedForward& step, std::size_t slice) const {
    const std::size_t begin = slice * step.slice_panels;
    Linear part = whole;
    part.weight += begin * part.panel_bytes;
    part.bias += begin * model_.kernels.panel;
    part.panels = std::min(step.slice_panels, part.panels - begin);
    return part;
  }

  // Pooling, the dense layers and normalising: each member for its share of the sentences.
  void take(const packed::Pool& step) {
    const auto [begin, end] = own_sentences();
    std::size_t row = 0;
    for (std::size_t i = 0; i < end; ++i) {
      const Sentence& sentence = chunk_.sentences[i];
      if (i >= begin) {
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

  void multiply(const ActivationMatrix& a, const Linear& linear, Epilogue epilogue,
                const Matrix<float>& out) {
    multiply(a, linear, epilogue,
             ActivationMatrix{reinterpret_cast<char*>(out.data), out.stride, sizeof(float)});
  }

  void multiply(const ActivationMatrix& a, const Linear& linear, Epilogue epilogue,
                const ActivationMatrix& out) {
    const auto [begin, end] = member_.share_of(linear.panels);
    model_.kernels.gemm({
        .a = a.data,
        .lda = a.stride,
        .rows = chunk_.rows,
        .weight = linear.weight + begin * linear.panel_bytes,
        .bias = linear.bias + begin * model_.kernels.panel,
        .depth = linear.depth,
        .panels = end - begin,
        .out = out.at(0, begin * model_.kernels.panel),
        .ldo = out.stride,
        .epilogue = epilogue,
    });
  }

  // Products read whole steps of the depth, and nothing else writes the columns that pad them.
  void clear_padding(const ActivationMatrix& matrix, std::size_t width) {
    const std::size_t bytes =
        (round_up(width, model_.kernels.k_step) - width) * matrix.element;
    if (bytes == 0) return;
    const auto [begin, end] = own_rows();
    for (std::size_t i = begin; i < end; ++i) std::memset(matrix.at(i, width), 0, bytes);
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
