// AVX512 with VNNI and BF16: products of words with weights of bytes, attention in bfloat16.
#include "vec_avx512.h"

#include "dot_bfloat16.h"
#include "dot_float32.h"
#include "dot_int8_vnni.h"
#include "heads_bfloat16.h"

namespace {
using Dot = WordDot<Int8>;
using Output = FloatDot;
using Heads = BfloatHeads;
}

#include "gemm_int8.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx512Bf16W8A16 = table(kosine::Isa::kAvx512Bf16);
