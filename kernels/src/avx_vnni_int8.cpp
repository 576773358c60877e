// AVX2 with VNNI: int8 products, everything between them in float.
#include "vec_avx2.h"

#include "dot_float32.h"
#include "dot_int8_avx_vnni.h"
#include "heads_float32.h"

namespace {
using Dot = ByteDot<Int8>;
using Output = FloatDot;
using Heads = FloatHeads;
}

#include "gemm_int8.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvxVnniInt8 = table(kosine::Isa::kAvxVnni);
