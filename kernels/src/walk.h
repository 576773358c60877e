// One member's way through the steps of a model, with one chunk of a batch.
//
// What the members of a team do between two meetings: a member writes only its own share, rows of a
// row-wise step, panels of columns of a product, heads of attention.
#pragma once

#include <cstddef>

#include "forward.h"

namespace kosine {

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

  void walk();

 private:
  using Range = Member::Range;

  Range own_rows() const { return member_.share_of(chunk_.rows); }
  Range own_sentences() const { return member_.share_of(chunk_.sentences.size()); }

  void take(const packed::Embed& step);
  void take(const packed::Norm& step);
  void take(const packed::Project& step);
  void take(const packed::Attention& step);    // walk_attention.cpp
  void take(const packed::FeedForward& step);  // walk_feed_forward.cpp
  void take(const packed::Pool& step);
  void take(const packed::Dense& step);
  void keep_states(const Sentence& sentence, std::size_t row, std::size_t width);
  void normalise_sentences();

  void change_heads(const packed::Attention& step);
  void change_head(const packed::Attention& step, std::size_t row, std::size_t length,
                   std::size_t head);
  Matrix<float> unchanged_heads() const;
  void round_heads(const packed::Attention& step, Range rows);
  std::size_t parts_of(std::size_t length, std::size_t heads) const;
  void attend(const packed::Attention& step);

  // All rows of `rows` up and down: slice by slice, or at one time.
  void take_slices(const packed::FeedForward& step, Range rows);
  void take_whole(const packed::FeedForward& step, Range rows);
  void inner_product(const Linear& linear, Epilogue epilogue, Range rows);
  void multiply_down(const packed::FeedForward& step, std::size_t slice, const char* inner,
                     Range rows);

  // x += norm(branch), which all members have written.
  void add_branch(const packed::RowNorm& norm);
  void norm_rows(const packed::RowNorm& norm, const Matrix<float>& x, std::size_t row,
                 std::size_t count, const Matrix<float>& out, bool adds);
  void multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                const Matrix<float>& out);
  void multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                const ActivationMatrix& out, std::size_t element);
  // Of so many rows. Strides in bytes; `element` are the bytes of one element of `out`.
  void multiply(const char* a, std::size_t stride, const Linear& linear, Epilogue epilogue,
                char* out, std::size_t out_stride, std::size_t element, std::size_t rows);
  std::size_t row_blocks() const;
  Range row_block(std::size_t i) const;
  void round(const Rounding& rounding, const Matrix<float>& x, std::size_t width,
             const ActivationMatrix& out, Range rows);
  void clear_padding(const Kernels& kernels, const ActivationMatrix& matrix, std::size_t width,
                     Range rows);

  const Model& model_;
  const Batch& batch_;
  const Chunk& chunk_;
  Workspace& work_;
  const Member& member_;
  Matrix<float> pooled_, pooled_next_;
};

}  // namespace kosine
