// AVX2: float products with weights of bytes.
#include "vec_avx2.h"

#include "dot_float32.h"
#include "dot_w8a16.h"
#include "heads_float32.h"

namespace {
using Dot = BytesDot<FloatDot>;
using Output = FloatDot;
using Heads = FloatHeads;
}

#include "gemm.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx2W8A16 = table(kosine::Isa::kAvx2);
