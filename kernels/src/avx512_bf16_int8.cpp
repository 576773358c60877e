// AVX512 with VNNI and BF16: int8 products, attention in bfloat16.
#include "vec_avx512.h"

#include "dot_bfloat16.h"
#include "dot_float32.h"
#include "dot_int8_vnni.h"
#include "heads_bfloat16.h"

namespace {
using Dot = ByteDot<Int8>;
using Output = FloatDot;
using Heads = BfloatHeads;
}

#include "gemm_int8.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx512Bf16Int8 = table(kosine::Isa::kAvx512Bf16);
