// AVX512 with VNNI: products of words with weights of bytes, everything between them in float.
#include "vec_avx512.h"

#include "dot_float32.h"
#include "dot_int8_vnni.h"
#include "heads_float32.h"

namespace {
using Dot = WordDot<Int8>;
using Output = FloatDot;
using Heads = FloatHeads;
}

#include "gemm_int8.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx512VnniW8A16 = table(kosine::Isa::kAvx512Vnni);
