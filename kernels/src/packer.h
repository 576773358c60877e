// Packs a model's steps.
#pragma once

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "model.h"

namespace kosine {

constexpr std::size_t kLaneMultiple = 16;  // what every table's vectors divide

// Goes over the steps twice: first it adds up what packing them will take, then, with an arena
// of that size, it packs them. Both rounds run the same code, so they cannot disagree.
class Model::Packer {
 public:
  Packer(Model& model, const Tensors& tensors, const std::set<std::string>& bytes_only)
      : model_(model), tensors_(tensors), bytes_only_(bytes_only) {}

  void pack(const std::vector<Step>& steps);

 private:
  // Where a step may stand: what the steps before it have left behind.
  enum class State { kNothing, kRows, kRowsAndInput, kSentences };

  template <class T>
  T* take(std::size_t count) {
    if (packing_) return model_.arena_.take<T>(count);
    bytes_ += round_up(count * sizeof(T), kAlignment);
    return nullptr;
  }

  void all(const std::vector<Step>& steps);

  void expect(const char* step, std::initializer_list<State> allowed);

  // The width of x from here on.
  void set_row_width(std::size_t columns, const std::string& name);

  // The table of a product of a layer.
  const Kernels& kernels_of(const std::string& name);

  static std::size_t row_bytes(const Kernels& kernels, std::size_t width);

  // How rows of `width` become what the product `name` reads.
  Rounding rounding_for(const std::string& name, const Kernels& kernels, std::size_t width);

  // The same for x and the step after this one; where that reads no activations, any will do.
  Rounding rounding_of_x();

  static void keep_most(std::size_t& most, std::size_t value) { most = std::max(most, value); }

  packed::Embed packed_step(const step::Embed& step);

  packed::Norm packed_step(const step::Norm& step);

  packed::RowNorm row_norm(const step::Norm& step, std::size_t width);

  std::optional<packed::RowNorm> row_norm(const std::optional<step::Norm>& step,
                                          std::size_t width);

  // Of what is added to x; it takes shape in rows of its own.
  std::optional<packed::RowNorm> branch_norm(const std::optional<step::Norm>& step);

  packed::Project packed_step(const step::Linear& step);

  packed::Attention packed_step(const step::Attention& step);

  // What heads add by distance, shared by the layers that read the same array.
  const float* distances(const step::Attention& step);

  // Cosines and sines of every place, shared by the layers that turn alike.
  std::pair<const float*, const float*> turns(const step::Attention& step);

  packed::FeedForward packed_step(const step::FeedForward& step);

  static Epilogue epilogue_of(InnerActivation activation);

  packed::Pool packed_step(const step::Pool& step);

  packed::Dense packed_step(const step::Dense& step);

  // A weight of bytes has a scale for each column.
  struct Weight {
    const char* data;
    std::size_t element;
    const float* scale;
  };

  Weight weight_of(const Kernels& kernels, const std::string& name, std::size_t depth,
                   std::size_t columns) const;

  Linear packed_linear(const Kernels& kernels, const std::string& name, std::size_t depth,
                       std::size_t columns, bool has_bias = true);

  // Cut along the depth; the first slice brings the bias. The last one's depth is padded to
  // whole panels of what feeds it: there `up` writes activation(0) = 0.
  std::vector<Linear> packed_slices(const Kernels& kernels, const std::string& name,
                                    std::size_t depth, std::size_t columns, std::size_t step,
                                    bool has_bias);

  Linear packed_part(const Kernels& kernels, const Weight& weight, std::size_t depth,
                     std::size_t columns, const float* bias, std::size_t depth_multiple);

  // `from` may be null: all zeros.
  const float* padded(const float* from, std::size_t count, std::size_t room);

  Model& model_;
  const Tensors& tensors_;
  const std::set<std::string>& bytes_only_;
  std::set<std::string> used_;
  const Step* next_ = nullptr;
  State state_ = State::kNothing;
  std::size_t width_ = 0;  // of x, or of the sentences' rows
  std::size_t bytes_ = 0;
  bool packing_ = false;
  std::map<std::tuple<double, std::size_t, double, std::size_t>,
           std::pair<const float*, const float*>>
      turns_;  // by theta, rows, divisor and head size
  std::map<std::string, const float*> distances_;
};

}  // namespace kosine
