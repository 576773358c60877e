// The code of amx_bf16.cpp on processors without AMX, for tests: slow, and the same bits.
#define KOSINE_AMX_EMULATED

#include "vec_avx512.h"

#include "dot_bfloat16.h"
#include "dot_float32.h"
#include "heads_amx.h"

namespace {
using Dot = BfloatDot;
using Output = Dot;
using Heads = TileHeads;
}

#include "amx_sums_bfloat16.h"

#include "amx_gemm.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAmxBfloat16Emulated =
    table(kosine::Isa::kAmxBf16Emulated);
