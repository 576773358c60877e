// AVX512 with BF16: bfloat16 products, everything between them in float.
#include "vec_avx512.h"

#include "dot_bfloat16.h"
#include "dot_float32.h"
#include "heads_bfloat16.h"

namespace {
using Dot = BfloatDot;
using Output = Dot;
using Heads = BfloatHeads;
}

#include "gemm.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx512Bfloat16 = table(kosine::Isa::kAvx512Bf16);
