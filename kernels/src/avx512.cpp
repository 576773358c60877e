// AVX512 F, BW, DQ and VL: float32.
#include "vec_avx512.h"

#include "dot_float32.h"
#include "heads_float32.h"

namespace {
using Dot = FloatDot;
using Output = Dot;
using Heads = FloatHeads;
}

#include "gemm.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAvx512Float32 = table(kosine::Isa::kAvx512);
