// The table of a translation unit that has chosen its `Vec`, its `Dot` and its `gemm`.
//
// These units are compiled for processors that the machine may not be. So they hold nothing but
// internal linkage and the table: no standard library template, whose copy compiled for AVX512
// the linker could pick for everyone.
#pragma once

#include "attention.h"
#include "kernels.h"
#include "rowwise.h"

namespace {

constexpr kosine::Kernels table(kosine::Isa isa) {
  return {
      .isa = isa,
      .dtype = Dot::kDtype,
      .activation = sizeof(Dot::Activation),
      .quantized = Dot::kQuantized,
      .planes = Dot::kPlanes,
      .head = sizeof(Heads::Element),
      .panel = kPanel,
      .k_step = kDepthStep,
      .chunk_rows = kChunkRows,
      .alone_rows = kAloneRows,
      .slice_columns = slice_columns,
      .row_elements = row_elements,
      .panel_bytes = panel_bytes,
      .pack = pack,
      .gemm = gemm,
      .layer_norm = layer_norm,
      .round = round_rows,
      .norm_rows = norm_rows,
      .attention_scratch = attention_scratch,
      .attention = attention,
      .turn = turn,
      .round_heads = Heads::round_rows,
  };
}

}  // namespace
