#include "forward.h"

#include <utility>

#include "pooling.h"

namespace kosine {
namespace {

// What the members of a team do between two meetings. Between meetings a member writes only its
// own share: rows of a row-wise step, panels of columns of a product, heads of attention.
class Forward {
 public:
  Forward(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& work,
          const Member& member)
      : model_(model), batch_(batch), chunk_(chunk), work_(work), member_(member) {}

  void run() {
    embed();
    for (const Layer& layer : model_.layers) {
      product(work_.input, layer.qkv, Epilogue::kStore, work_.qkv);
      member_.meet();
      attend();
      member_.meet();
      product(work_.context, layer.output, Epilogue::kAdd, work_.x);
      member_.meet();
      normalise(layer.attention_norm);
      member_.meet();
      feed_forward(layer);
      member_.meet();
      normalise(layer.ffn_norm);
      member_.meet();
    }
    finish();
  }

 private:
  void embed() {
    const bool projected = model_.project.has_value();
    const Matrix<float>& to = projected ? work_.embedded : work_.x;
    const std::size_t width = model_.embedding_size;
    const auto [begin, end] = member_.share_of(chunk_.rows);
    std::size_t row = 0;
    for (const Sentence& sentence : chunk_.sentences) {
      for (std::size_t i = 0; i < sentence.length; ++i, ++row) {
        if (row < begin || row >= end) continue;
        const std::size_t token = sentence.begin + i;
        const float* word = model_.word + static_cast<std::size_t>(batch_.ids[token]) * width;
        const float* position =
            model_.position + static_cast<std::size_t>(batch_.positions[token]) * width;
        float* x = to.row(row);
        for (std::size_t j = 0; j < width; ++j) x[j] = word[j] + position[j];
      }
    }
    normalise(to, width, model_.embedding_norm);
    member_.meet();
    if (!projected) return;
    product(work_.input, *model_.project, Epilogue::kStore, work_.x);
    member_.meet();
    // Up to a whole step of the depth: beyond hidden_size the product wrote zeros.
    model_.kernels.round(work_.x.row(begin), work_.x.stride, end - begin,
                         round_up(model_.hidden_size, model_.kernels.k_step),
                         work_.input.at(begin, 0), work_.input.stride);
    member_.meet();
  }

  void attend() {
    const std::size_t hidden = model_.hidden_size;
    std::size_t item = 0;
    std::size_t row = 0;
    for (const Sentence& sentence : chunk_.sentences) {
      for (std::size_t head = 0; head < model_.num_heads; ++head, ++item) {
        if (item % member_.size != member_.rank) continue;
        const float* q = work_.qkv.row(row) + head * model_.head_size;
        model_.kernels.attention({
            .q = q,
            .k = q + hidden,
            .v = q + 2 * hidden,
            .ld = work_.qkv.stride,
            .length = sentence.length,
            .head_size = model_.head_size,
            .out = work_.context.at(row, head * model_.head_size),
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
  void feed_forward(const Layer& layer) {
    const std::size_t slices = layer.down.size();
    if (member_.size == 1) {
      for (std::size_t i = 0; i < slices; ++i) {
        product(work_.input, up_slice(layer.up, i), Epilogue::kGelu, work_.inner, 0);
        product(work_.inner, layer.down[i], Epilogue::kAdd, work_.x);
      }
      return;
    }
    product(work_.input, layer.up, Epilogue::kGelu, work_.inner, 0);
    member_.meet();
    for (std::size_t i = 0; i < slices; ++i) {
      ActivationMatrix inner = work_.inner;
      inner.data = inner.at(0, i * model_.slice_panels * model_.kernels.panel);
      product(inner, layer.down[i], Epilogue::kAdd, work_.x);
    }
  }

  Linear up_slice(const Linear& up, std::size_t slice) const {
    const std::size_t begin = slice * model_.slice_panels;
    Linear part = up;
    part.weight += begin * up.panel_bytes;
    part.bias += begin * model_.kernels.panel;
    part.panels = begin + model_.slice_panels < up.panels ? model_.slice_panels : up.panels - begin;
    return part;
  }

  void product(const ActivationMatrix& a, const Linear& linear, Epilogue epilogue,
               const Matrix<float>& out) {
    product(a, linear, epilogue,
            ActivationMatrix{reinterpret_cast<char*>(out.data), out.stride, sizeof(float)}, 0);
  }

  void product(const ActivationMatrix& a, const Linear& linear, Epilogue epilogue,
               const ActivationMatrix& out, std::size_t column) {
    const auto [begin, end] = member_.share_of(linear.panels);
    model_.kernels.gemm({
        .a = a.data,
        .lda = a.stride,
        .rows = chunk_.rows,
        .weight = linear.weight + begin * linear.panel_bytes,
        .bias = linear.bias + begin * model_.kernels.panel,
        .depth = linear.depth,
        .panels = end - begin,
        .out = out.at(0, column + begin * model_.kernels.panel),
        .ldo = out.stride,
        .epilogue = epilogue,
    });
  }

  void normalise(const Norm& norm) { normalise(work_.x, model_.hidden_size, norm); }

  void normalise(const Matrix<float>& x, std::size_t width, const Norm& norm) {
    const auto [begin, end] = member_.share_of(chunk_.rows);
    model_.kernels.layer_norm({
        .x = x.row(begin),
        .ldx = x.stride,
        .rows = end - begin,
        .width = width,
        .gain = norm.gain,
        .bias = norm.bias,
        .eps = model_.layer_norm_eps,
        .rounded = work_.input.at(begin, 0),
        .ldr = work_.input.stride,
    });
  }

  // Pooling, the dense layers and normalising, each member for its share of the sentences.
  void finish() {
    const auto [begin, end] = member_.share_of(chunk_.sentences.size());
    std::size_t row = 0;
    for (std::size_t i = 0; i < end; ++i) {
      const Sentence& sentence = chunk_.sentences[i];
      if (i >= begin) {
        const std::size_t skip =
            batch_.skip == nullptr ? 0 : static_cast<std::size_t>(batch_.skip[sentence.index]);
        pool_rows(work_.x.row(row), work_.x.stride, sentence.length, skip, model_.hidden_size,
                  model_.pooling, work_.pooled.row(i));
      }
      row += sentence.length;
    }
    const Matrix<float>* pooled = &work_.pooled;
    const Matrix<float>* next = &work_.pooled_next;
    for (const DenseLayer& dense : model_.dense) {
      apply_dense(dense, model_.floats, *pooled, *next, begin, end);
      std::swap(pooled, next);
    }
    for (std::size_t i = begin; i < end; ++i) {
      const std::size_t index = chunk_.sentences[i].index;
      batch_.norms[index] =
          normalise_row(pooled->row(i), model_.dim, batch_.vectors + index * model_.dim);
    }
  }

  const Model& model_;
  const Batch& batch_;
  const Chunk& chunk_;
  Workspace& work_;
  const Member& member_;
};

}  // namespace

void forward(const Model& model, const Batch& batch, const Chunk& chunk, Workspace& work,
             const Member& member) {
  Forward(model, batch, chunk, work, member).run();
}

}  // namespace kosine
