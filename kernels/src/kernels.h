// The interface of an ISA level: one table of functions per translation unit.
//
// A table computes in one dtype. "Activation" below is the type that a matrix product reads:
// float in a float32 table, bfloat16 bits in a bfloat16 table, in an int8 or w8a16 table whole
// numbers of 8 or 15 bits with a scale (quantize.h). "Head" is the type of the q, k and v that
// attention reads: bfloat16 where it rounds what it multiplies, else float. Everything between
// products (the residual stream, LayerNorm, softmax, pooling) is float in every table.
//
// A table must keep two promises, which tests hold it to:
//   * the arithmetic of an output row depends on that row's inputs and on the shapes of the
//     weights only: not on `rows`, nor on the place of the row among them;
//   * nothing outside the stated extents is read or written.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kosine {

// In order: a machine that has one has those before it, but for kAvxVnni, which many with AVX512
// lack. The emulations are no level of any machine: they stand before the levels that they stand
// for, so that these are no part of them.
enum class Isa {
  kAvx2,
  kAvxVnni,
  kAvx512,
  kAvx512Vnni,
  kAvx512Bf16,
  kAmxBf16Emulated,
  kAmxInt8Emulated,
  kAmxBf16,
  kAmxInt8,
};
enum class Dtype { kFloat32, kBfloat16, kW8A16, kInt8 };

// What becomes of the product (rows, depth) x (depth, columns):
enum class Epilogue {
  kStore,  // float       out  = product + bias
  kHeads,  // head        out  = product + bias
  kAdd,    // float       out += product + bias
  kGelu,   // output      out  = gelu(product + bias), the erf form
  kGeluTanh,  // output   out  = the same in the form with tanh
  kSilu,   // output      out  = (product + bias) / (1 + e^-(product + bias))
  kGate,   // output      out *= product + bias
};

// A product over whole panels of a packed weight. `out` must have room for panels * panel
// columns in each row: the columns that pad the last panel are written too (gelu(0) = 0 there,
// which the next product relies on).
struct GemmArgs {
  const void* a;       // (rows, planes, row_elements(depth)) activations; zero where the packed
                       // depth exceeds the weight's own, unless the table is quantized
  std::size_t lda;     // elements between rows of a; its planes share them evenly
  std::size_t rows;
  const void* weight;  // `panels` packed panels
  const float* bias;   // (panels * panel,)
  std::size_t depth;   // as packed: a multiple of k_step
  std::size_t panels;
  void* out;
  std::size_t ldo;     // elements between rows of out
  Epilogue epilogue;
};

// x = (x - mean) / sqrt(variance + eps) * gain + bias, row by row and in place, and the result as
// activations; with `rms` the mean counts as zero. `width` is a multiple of 16.
struct NormArgs {
  float* x;
  std::size_t ldx;
  std::size_t rows;
  std::size_t width;
  const float* gain;
  const float* bias;
  float eps;
  bool rms;
  bool keeps_x;         // only `rounded` is written
  const float* smooth;  // (width,) as in RoundArgs
  void* rounded;        // (rows, planes, row_elements(width)) activations
  std::size_t ldr;
};

// The same from floats to floats: `out`, which may be x, becomes the normalised row, or has it
// added.
struct RowNormArgs {
  const float* x;
  std::size_t ldx;
  std::size_t rows;
  std::size_t width;
  const float* gain;
  const float* bias;
  float eps;
  bool rms;
  float* out;
  std::size_t ldo;
  bool adds;
};

// Floats to activations. `width` is a multiple of 16.
struct RoundArgs {
  const float* x;
  std::size_t ldx;
  std::size_t rows;
  std::size_t width;
  const float* smooth;  // (width,): what x is multiplied by first; null where by nothing
  void* out;            // (rows, planes, row_elements(width)) activations
  std::size_t ldo;
};

// A weight (depth, columns) to panels.
struct PackArgs {
  const void* weight;      // float, or signed bytes where the table's dtype is kW8A16 or kInt8
  std::size_t ldw;
  std::size_t depth;
  std::size_t padded_depth;  // a multiple of k_step
  std::size_t columns;
  const float* scale;      // (columns,): what the bytes are multiplied by
  void* packed;            // ceil(columns / panel) panels of panel_bytes(padded_depth)
};

// One head of one sentence: out = softmax(q kT / sqrt(head_size) + what distances add) v. Row i
// sees rows i - behind to i + ahead. A call computes one of `parts` parts of the rows, which cost
// about the same; together they write every row.
struct AttentionArgs {
  const void* q;          // (length, head_size) heads, rows ld elements apart; k and v alike
  const void* k;
  const void* v;
  std::size_t ld;
  std::size_t length;
  std::size_t head_size;  // a multiple of 16, at most 256
  std::size_t behind;
  std::size_t ahead;
  const float* distances;  // (2 * reach + 1,), for keys at -reach .. reach from a row; or null
  std::size_t reach;
  std::size_t part;
  std::size_t parts;
  void* out;              // (length, head_size) outputs
  std::size_t ldo;
  float* scratch;         // attention_scratch(length, head_size) floats
};

// Rows of a head, turned in place: the halves a and b of row i become a cos - b sin and
// b cos + a sin of row i of the tables.
struct TurnArgs {
  float* x;               // (length, head_size), rows ld apart
  std::size_t ld;
  std::size_t length;
  std::size_t head_size;  // a multiple of 16
  const float* cos;       // (length, head_size / 2)
  const float* sin;
};

// Floats to heads, in place: those of a row from its beginning on.
struct RoundHeadsArgs {
  float* x;
  std::size_t ld;
  std::size_t rows;
  std::size_t width;  // a multiple of 16
};

struct Kernels {
  Isa isa;
  Dtype dtype;
  std::size_t activation;  // bytes of one
  // Activations as in quantize.h. Attention and GELU write floats then ("outputs" above), and
  // `round` follows, since it needs whole rows. Else outputs are activations.
  bool quantized;
  std::size_t planes;      // of a row of activations, half a stride apart where there are two
  std::size_t head;        // bytes of one
  std::size_t panel;       // columns in a packed panel
  std::size_t k_step;      // depth is padded to a multiple of this
  std::size_t chunk_rows;  // rows that a thread takes through the layers at one time, about
  std::size_t alone_rows;  // with fewer for each thread, reading the weights is what takes the time
  // Columns of a slice of a feed-forward with `inner` columns, whole panels; see
  // packed::FeedForward. Where rows are quantized it is a slice of those too.
  std::size_t (*slice_columns)(std::size_t inner);
  std::size_t (*row_elements)(std::size_t width);  // of a plane of a row, padding included
  std::size_t (*panel_bytes)(std::size_t padded_depth);
  void (*pack)(const PackArgs&);
  void (*gemm)(const GemmArgs&);
  void (*layer_norm)(const NormArgs&);
  void (*round)(const RoundArgs&);
  void (*norm_rows)(const RowNormArgs&);
  std::size_t (*attention_scratch)(std::size_t length, std::size_t head_size);
  void (*attention)(const AttentionArgs&);
  void (*turn)(const TurnArgs&);
  void (*round_heads)(const RoundHeadsArgs&);
};

extern const Kernels kAvx2Float32;
extern const Kernels kAvx512Float32;
extern const Kernels kAvx2W8A16;
extern const Kernels kAvxVnniW8A16;
extern const Kernels kAvx512VnniW8A16;
extern const Kernels kAvx512Bf16W8A16;
extern const Kernels kAvx2Int8;
extern const Kernels kAvxVnniInt8;
extern const Kernels kAvx512VnniInt8;
extern const Kernels kAvx512Bf16Int8;
extern const Kernels kAvx512Bfloat16;
extern const Kernels kAmxBfloat16;
extern const Kernels kAmxBfloat16Emulated;
extern const Kernels kAmxW8A16;
extern const Kernels kAmxW8A16Emulated;
extern const Kernels kAmxInt8;
extern const Kernels kAmxInt8Emulated;

}  // namespace kosine
