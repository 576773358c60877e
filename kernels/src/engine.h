// An encoder that is ready to run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <set>
#include <string>
#include <vector>

#include "model.h"
#include "thread_pool.h"

namespace kosine {

class Engine {
 public:
  // Throws std::invalid_argument for what cannot be run, Unavailable for what this machine
  // lacks, std::bad_alloc.
  Engine(const Tensors& tensors, const std::vector<Step>& steps, const std::string& dtype,
         const std::set<std::string>& bytes_only, const std::string& isa, int threads, bool spin,
         Guard guard);

  // Encodes packed sentences. Any number of threads may call it together.
  //
  // ids, positions (tokens,), starts (sentences + 1,), skip (sentences,) where there is any;
  // vectors (sentences, dim) and norms (sentences,) are written, and states (tokens, model().hidden),
  // the rows that pooling reads, where they are asked for. Throws std::invalid_argument before
  // anything is computed where a number is out of range.
  void forward(std::span<const std::int32_t> ids, std::span<const std::int32_t> starts,
               std::span<const std::int32_t> positions,
               std::optional<std::span<const std::int32_t>> skip, std::span<float> vectors,
               std::span<float> norms, std::optional<std::span<float>> states) const;

  const Model& model() const { return model_; }
  int threads() const { return threads_; }

 private:
  Model model_;
  int threads_;
  SpinTime idle_;
};

}  // namespace kosine
