// The code of amx_w8a16.cpp on processors without AMX, for tests: slow, and the same bits.
#define KOSINE_AMX_EMULATED

#include "vec_avx512.h"

#include "dot_bfloat16.h"
#include "dot_float32.h"
#include "dot_int8_vnni.h"
#include "heads_amx.h"

namespace {
using Dot = WordDot<Int8>;
using Output = FloatDot;
using Heads = TileHeads;
}

#include "amx_sums_int8.h"

#include "amx_gemm.h"
#include "table.h"

constinit const kosine::Kernels kosine::kAmxW8A16Emulated = table(kosine::Isa::kAmxInt8Emulated);
