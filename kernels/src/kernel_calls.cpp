#include "kernel_calls.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>

#include "arena.h"
#include "cpu.h"
#include "guarded_call.h"
#include "schedule.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kosine {
namespace {

using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Weight = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

constexpr std::size_t kNoWindow = std::size_t{1} << 24;

// (rows, width) to Python; `get(i, j)` gives the elements.
template <class Get>
Result result(std::size_t rows, std::size_t width, Get get) {
  auto values = std::make_unique<float[]>(rows * width);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = 0; j < width; ++j) values[i * width + j] = get(i, j);
  }
  float* data = values.get();
  nb::capsule owner(values.release(), [](void* p) noexcept { delete[] static_cast<float*>(p); });
  return Result(data, {rows, width}, owner);
}

void need(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

Epilogue epilogue_named(const std::string& name) {
  if (name == "store") return Epilogue::kStore;
  if (name == "heads") return Epilogue::kHeads;
  if (name == "add") return Epilogue::kAdd;
  if (name == "gelu") return Epilogue::kGelu;
  if (name == "gelu_tanh") return Epilogue::kGeluTanh;
  if (name == "silu") return Epilogue::kSilu;
  if (name == "gate") return Epilogue::kGate;
  throw std::invalid_argument("unknown epilogue '" + name + "'; known: store, heads, add, "
                              "gelu, gelu_tanh, silu, gate");
}

// `scale` where `weight` is int8; `smooth` may be left out.
Result call_gemm(const std::string& dtype, const std::string& isa, const Rows& a,
                 const Weight& weight, const Row& bias, const Rows& out,
                 const std::string& epilogue, const std::string& guard,
                 const std::optional<Row>& scale, const std::optional<Row>& smooth) {
  GuardedCall call(dtype, isa, guard);
  const Kernels& kernels = call.kernels;
  const std::size_t rows = a.shape(0), depth = a.shape(1), columns = weight.shape(1);
  const bool bytes = weight.dtype() == nb::dtype<std::int8_t>();
  need(bytes || weight.dtype() == nb::dtype<float>(), "weight is neither float32 nor int8");
  need(bytes == kernels.quantized && bytes == scale.has_value(), "the dtype does not fit the weight");
  need(!bytes || scale->shape(0) == columns, "scale does not fit");
  need(!smooth.has_value() || (kernels.quantized && smooth->shape(0) == depth),
       "smooth does not fit");
  need(weight.shape(0) == depth && bias.shape(0) == columns, "a, weight and bias do not fit");
  need(out.shape(0) == rows && out.shape(1) == columns, "out does not fit");
  const std::size_t padded = round_up(depth, kernels.k_step);
  const std::size_t panels = round_up(columns, kernels.panel) / kernels.panel;
  const std::size_t width = panels * kernels.panel;
  const Epilogue chosen = epilogue_named(epilogue);
  const bool activations =
      chosen != Epilogue::kStore && chosen != Epilogue::kAdd && chosen != Epilogue::kHeads;
  const std::size_t written = chosen == Epilogue::kHeads ? kernels.head
                              : activations && !kernels.quantized ? kernels.activation
                                                                  : sizeof(float);
  const std::size_t element = bytes ? 1 : sizeof(float);

  char* source = call.room(depth * columns * element);
  std::memcpy(source, weight.data(), depth * columns * element);
  char* packed = call.room(panels * kernels.panel_bytes(padded));
  kernels.pack({
      .weight = source,
      .ldw = columns,
      .depth = depth,
      .padded_depth = padded,
      .columns = columns,
      .scale = bytes ? call.floats(scale->data(), 1, columns, columns) : nullptr,
      .packed = packed,
  });
  char* to = call.stored(out.data(), rows, columns, width, written);
  kernels.gemm({
      .a = call.activations(a.data(), rows, depth, smooth.has_value() ? smooth->data() : nullptr),
      .lda = call.activation_stride(depth),
      .rows = rows,
      .weight = packed,
      .bias = call.floats(bias.data(), 1, columns, width),
      .depth = padded,
      .panels = panels,
      .out = to,
      .ldo = width,
      .epilogue = chosen,
  });
  return result(rows, columns, [&](std::size_t i, std::size_t j) {
    return call.get(to + (i * width + j) * written, written);
  });
}

// Rows of a quantized table's activations, byte for byte: (rows, planes * row_elements(width)).
Result call_quantize(const std::string& dtype, const std::string& isa, const Rows& x,
                     const std::optional<Row>& smooth, const std::string& guard) {
  GuardedCall call(dtype, isa, guard);
  need(call.kernels.quantized, "the dtype does not quantize rows");
  const std::size_t rows = x.shape(0), width = x.shape(1);
  need(width % 16 == 0, "the width of x is not a multiple of 16");
  need(!smooth.has_value() || smooth->shape(0) == width, "smooth does not fit");
  const std::size_t bytes = call.activation_stride(width) * call.kernels.activation;
  const char* to =
      call.activations(x.data(), rows, width, smooth.has_value() ? smooth->data() : nullptr);
  return result(rows, bytes, [&](std::size_t i, std::size_t j) {
    return static_cast<float>(static_cast<unsigned char>(to[i * bytes + j]));
  });
}

std::pair<Result, Result> call_layer_norm(const std::string& dtype, const std::string& isa,
                                          const Rows& x, const Row& gain, const Row& bias,
                                          float eps, const std::string& guard,
                                          bool keeps_x, bool rms) {
  GuardedCall call(dtype, isa, guard);
  const std::size_t rows = x.shape(0), width = x.shape(1);
  need(width % 16 == 0 && gain.shape(0) == width && bias.shape(0) == width,
       "x, gain and bias do not fit, or their width is not a multiple of 16");
  float* to = call.floats(x.data(), rows, width, width);
  need(!call.kernels.quantized, "rows of a quantized table are read by `quantize`");
  char* rounded = call.room(rows * width * call.kernels.activation);
  call.kernels.layer_norm({
      .x = to,
      .ldx = width,
      .rows = rows,
      .width = width,
      .gain = call.floats(gain.data(), 1, width, width),
      .bias = call.floats(bias.data(), 1, width, width),
      .eps = eps,
      .rms = rms,
      .keeps_x = keeps_x,
      .smooth = nullptr,
      .rounded = rounded,
      .ldr = width,
  });
  return {result(rows, width, [&](std::size_t i, std::size_t j) { return to[i * width + j]; }),
          result(rows, width, [&](std::size_t i, std::size_t j) {
            return call.get(rounded + (i * width + j) * call.kernels.activation,
                            call.kernels.activation);
          })};
}

// `out`, with the rows of x as `adds` says.
Result call_norm_rows(const std::string& dtype, const std::string& isa, const Rows& x,
                      const Row& gain, const Row& bias, float eps, bool rms, const Rows& out,
                      bool adds, const std::string& guard) {
  GuardedCall call(dtype, isa, guard);
  const std::size_t rows = x.shape(0), width = x.shape(1);
  need(width % 16 == 0 && gain.shape(0) == width && bias.shape(0) == width &&
           out.shape(0) == rows && out.shape(1) == width,
       "x, gain, bias and out do not fit, or their width is not a multiple of 16");
  float* to = call.floats(out.data(), rows, width, width);
  call.kernels.norm_rows({
      .x = call.floats(x.data(), rows, width, width),
      .ldx = width,
      .rows = rows,
      .width = width,
      .gain = call.floats(gain.data(), 1, width, width),
      .bias = call.floats(bias.data(), 1, width, width),
      .eps = eps,
      .rms = rms,
      .out = to,
      .ldo = width,
      .adds = adds,
  });
  return result(rows, width, [&](std::size_t i, std::size_t j) { return to[i * width + j]; });
}

Result call_round(const std::string& dtype, const std::string& isa, const Rows& x,
                  const std::string& guard) {
  GuardedCall call(dtype, isa, guard);
  const std::size_t rows = x.shape(0), width = x.shape(1);
  need(width % 16 == 0, "the width of x is not a multiple of 16");
  need(!call.kernels.quantized, "rows of a quantized table are read by `quantize`");
  char* to = call.room(rows * width * call.kernels.activation);
  call.kernels.round({
      .x = call.floats(x.data(), rows, width, width),
      .ldx = width,
      .rows = rows,
      .width = width,
      .smooth = nullptr,
      .out = to,
      .ldo = width,
  });
  return result(rows, width, [&](std::size_t i, std::size_t j) {
    return call.get(to + (i * width + j) * call.kernels.activation, call.kernels.activation);
  });
}

// q, k and v each in a buffer of their own, so that a read past any one of them is caught.
Result call_attention(const std::string& dtype, const std::string& isa, const Rows& q,
                      const Rows& k, const Rows& v, const std::string& guard,
                      std::size_t window, bool causal, const std::optional<Row>& distances,
                      std::size_t parts) {
  GuardedCall call(dtype, isa, guard);
  const std::size_t length = q.shape(0), head_size = q.shape(1);
  need(head_size % 16 == 0 && head_size <= 256, "the head size is not a multiple of 16 to 256");
  need(length != 0, "there are no rows");
  for (const Rows* rows : {&k, &v}) {
    need(rows->shape(0) == length && rows->shape(1) == head_size, "q, k and v do not fit");
  }
  need(!distances.has_value() || distances->shape(0) % 2 == 1, "distances are not odd in number");
  need(parts != 0, "there are no parts");
  // What a quantized table writes are floats.
  const std::size_t element = call.kernels.quantized ? sizeof(float) : call.kernels.activation;
  char* to = call.room(length * head_size * element);
  AttentionArgs args{
      .q = call.stored(q.data(), length, head_size, head_size, call.kernels.head),
      .k = call.stored(k.data(), length, head_size, head_size, call.kernels.head),
      .v = call.stored(v.data(), length, head_size, head_size, call.kernels.head),
      .ld = head_size,
      .length = length,
      .head_size = head_size,
      .behind = window,
      .ahead = causal ? 0 : window,
      .distances = nullptr,
      .reach = 0,
      .part = 0,
      .parts = parts,
      .out = to,
      .ldo = head_size,
      .scratch = call.floats(nullptr, 1, 0, call.kernels.attention_scratch(length, head_size)),
  };
  if (distances.has_value()) {
    const std::size_t count = distances->shape(0);
    args.distances = call.floats(distances->data(), 1, count, count);
    args.reach = count / 2;
  }
  for (; args.part < parts; ++args.part) call.kernels.attention(args);
  return result(length, head_size, [&](std::size_t i, std::size_t j) {
    return call.get(to + (i * head_size + j) * element, element);
  });
}

// What a stray access does: the byte behind (or before) a guarded buffer, where nothing is mapped.
int call_stray_read(const std::string& guard) {
  Arena arena(kAlignment, guard_named(guard));
  const volatile char* buffer = arena.take<char>(kAlignment);
  return guard_named(guard) == Guard::kBefore ? *(buffer - 1) : buffer[kAlignment];
}

std::pair<bool, std::vector<std::vector<std::size_t>>> call_schedule(const std::string& dtype,
                                                                 const std::string& isa,
                                                                 const Ints& starts,
                                                                 std::size_t threads) {
  need(starts.size() >= 2 && threads >= 1, "starts or threads out of range");
  const Schedule schedule = schedule_batch(starts.data(), starts.size() - 1, threads,
                               select_kernels(dtype_named(dtype), isa));
  std::vector<std::vector<std::size_t>> chunks;
  for (const Chunk& chunk : schedule.chunks) {
    auto& indices = chunks.emplace_back();
    for (const Sentence& sentence : chunk.sentences) indices.push_back(sentence.index);
  }
  return {schedule.together, chunks};
}

}  // namespace

void bind_kernel_calls(nb::module_& module) {
  nb::module_ m = module.def_submodule("kernels", "One kernel at a time, in guarded buffers.");
  m.def("gemm", call_gemm, "dtype"_a, "isa"_a, "a"_a, "weight"_a, "bias"_a, "out"_a, "epilogue"_a,
        "guard"_a, "scale"_a = nb::none(), "smooth"_a = nb::none());
  m.def("quantize", call_quantize, "dtype"_a, "isa"_a, "x"_a, "smooth"_a.none(), "guard"_a);
  m.def("layer_norm", call_layer_norm, "dtype"_a, "isa"_a, "x"_a, "gain"_a, "bias"_a, "eps"_a,
        "guard"_a, "keeps_x"_a = false, "rms"_a = false);
  m.def("norm_rows", call_norm_rows, "dtype"_a, "isa"_a, "x"_a, "gain"_a, "bias"_a, "eps"_a,
        "rms"_a, "out"_a, "adds"_a, "guard"_a);
  m.def("round", call_round, "dtype"_a, "isa"_a, "x"_a, "guard"_a);
  m.def("attention", call_attention, "dtype"_a, "isa"_a, "q"_a, "k"_a, "v"_a, "guard"_a,
        "window"_a = kNoWindow, "causal"_a = false, "distances"_a = nb::none(), "parts"_a = 1);
  m.def("stray_read", call_stray_read, "guard"_a);
  m.def("report_leaks", [] { nb::set_leak_warnings(true); });
  m.def("schedule", call_schedule, "dtype"_a, "isa"_a, "starts"_a, "threads"_a);
}

}  // namespace kosine
