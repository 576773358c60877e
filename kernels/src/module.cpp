// The Python module kosine_kernels._native: arrays in, arrays out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <span>

#include "cpu.h"
#include "engine.h"
#include "kernel_calls.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kosine {
namespace {

using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using OutVectors = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutNorms = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const std::int32_t> span_of(const Ints& array) { return {array.data(), array.size()}; }

void make_engine(Engine* self, const nb::dict& arrays, std::size_t num_layers,
                 std::size_t num_heads, float layer_norm_eps, const std::string& pooling,
                 const std::vector<std::pair<std::string, bool>>& dense, const std::string& dtype,
                 const std::string& isa, int threads, bool spin, const std::string& guard) {
  Tensors tensors;
  std::vector<Floats> alive;  // the arrays' memory, until all is packed
  for (auto [key, value] : arrays) {
    const auto name = nb::cast<std::string>(key);
    Floats array;
    if (!nb::try_cast(value, array, false)) {
      throw nb::type_error(
          ("tensor " + name + " is not a C-contiguous float32 array; convert it").c_str());
    }
    Tensor tensor{array.data(), {}};
    for (std::size_t i = 0; i < array.ndim(); ++i) tensor.shape.push_back(array.shape(i));
    tensors.emplace(name, std::move(tensor));
    alive.push_back(std::move(array));
  }
  Config config;
  config.num_layers = num_layers;
  config.num_heads = num_heads;
  config.layer_norm_eps = layer_norm_eps;
  config.pooling = pooling_named(pooling);
  for (const auto& [activation, use_residual] : dense) {
    config.dense.push_back({activation_named(activation), use_residual});
  }
  const Guard chosen = guard_named(guard);
  const nb::gil_scoped_release released;
  new (self) Engine(tensors, config, dtype, isa, threads, spin, chosen);
}

void run_engine(const Engine& self, const Ints& ids, const Ints& starts, const Ints& positions,
                const std::optional<Ints>& skip, const OutVectors& vectors,
                const OutNorms& norms) {
  if (vectors.shape(0) != norms.shape(0)) {
    throw std::invalid_argument("vectors and norms have " + std::to_string(vectors.shape(0)) +
                                " and " + std::to_string(norms.shape(0)) +
                                " rows; equal numbers are needed");
  }
  std::optional<std::span<const std::int32_t>> left_out;
  if (skip.has_value()) left_out = span_of(*skip);
  const nb::gil_scoped_release released;
  self.run(span_of(ids), span_of(starts), span_of(positions), left_out,
           {vectors.data(), vectors.size()}, {norms.data(), norms.size()});
}

}  // namespace
}  // namespace kosine

NB_MODULE(_native, m) {
  using namespace kosine;
  m.doc() = "Native kernels; see kosine_kernels.engine.";
  // A daemon thread, or anything else that outlives the interpreter, may hold an engine then: that
  // is nothing a user could mend. Tests ask for the reports (kernels.report_leaks).
  nb::set_leak_warnings(false);

  static PyObject* unavailable = PyErr_NewException("kosine_kernels._native.Unavailable",
                                                    PyExc_RuntimeError, nullptr);
  m.attr("Unavailable") = nb::handle(unavailable);
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    try {
      std::rethrow_exception(error);
    } catch (const Unavailable& caught) {
      PyErr_SetString(unavailable, caught.message.c_str());
    }
  });

  m.def("isa_levels", [] {
    std::vector<std::string> names;
    for (Isa isa : isa_levels()) names.emplace_back(name_of(isa));
    return names;
  });
  m.def(
      "select_isa",
      [](const std::string& dtype, const std::string& isa) {
        return std::string(name_of(select_kernels(dtype_named(dtype), isa).isa));
      },
      "dtype"_a, "isa"_a);

  nb::class_<Engine>(m, "Engine")
      .def("__init__", make_engine, "tensors"_a, nb::kw_only(), "num_layers"_a, "num_heads"_a,
           "layer_norm_eps"_a, "pooling"_a, "dense"_a, "dtype"_a, "isa"_a, "threads"_a, "spin"_a,
           "guard"_a)
      .def("run", run_engine, "ids"_a.noconvert(), "starts"_a.noconvert(),
           "positions"_a.noconvert(), "skip"_a.noconvert().none(), "vectors"_a.noconvert(),
           "norms"_a.noconvert())
      .def_prop_ro("dim", [](const Engine& self) { return self.model().dim; })
      .def_prop_ro("isa", [](const Engine& self) { return name_of(self.model().kernels.isa); })
      .def_prop_ro("dtype", [](const Engine& self) { return name_of(self.model().kernels.dtype); })
      .def_prop_ro("threads", &Engine::threads)
      .def_prop_ro("packed_bytes", [](const Engine& self) { return self.model().bytes(); });

  bind_kernel_calls(m);
}
