// AVX2 and FMA: float32.
#include "vec_avx2.h"

#include "dot_float32.h"
#include "heads_float32.h"

namespace {
using Dot = FloatDot;
using Output = Dot;
using Heads = FloatHeads;
}

#include "gemm.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx2Float32 = table(kosine::Isa::kAvx2);
