// AMX with int8: products of words with weights of bytes in tiles, and attention's of bfloat16.
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

constinit const kosine::Kernels kosine::kAmxW8A16 = table(kosine::Isa::kAmxInt8);
