// AMX with BF16: bfloat16 products in tiles, everything between them in AVX512.
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

constinit const kosine::Kernels kosine::kAmxBfloat16 = table(kosine::Isa::kAmxBf16);
