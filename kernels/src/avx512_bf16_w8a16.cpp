// AVX512 with BF16: bfloat16 products with weights of bytes.
#include "vec_avx512.h"

#include "dot_bfloat16.h"
#include "dot_float32.h"
#include "dot_w8a16.h"
#include "heads_bfloat16.h"

namespace {
using Dot = BytesDot<BfloatDot>;
using Output = FloatDot;
using Heads = BfloatHeads;
}

#include "gemm.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx512Bf16W8A16 = table(kosine::Isa::kAvx512Bf16);
