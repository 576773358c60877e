// From token rows to unit vectors: a few operations for each sentence, in plain C++.
#pragma once

#include <cstddef>

#include "model.h"
#include "workspace.h"

namespace kosine {

// rows (length, width), `ldx` apart -> out (width,). The first `skip` rows are left out; where
// nothing is left, cls falls back to the first row and the others give zeros.
void pool_rows(const float* x, std::size_t ldx, std::size_t length, std::size_t skip,
               std::size_t width, Pooling pooling, float* out);

// Rows begin .. end of `to` = activation(from x weight + bias), plus `from` with a residual.
void apply_dense(const packed::Dense& dense, const Kernels& floats, const Matrix<float>& from,
                 const Matrix<float>& to, std::size_t begin, std::size_t end);

// out = x / max(|x|, 1e-12); gives |x|.
float normalise_row(const float* x, std::size_t width, float* out);

}  // namespace kosine
