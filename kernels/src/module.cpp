// The Python module kosine_kernels._native: arrays in, arrays out.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <span>

#include "cpu.h"
#include "engine.h"
#include "kernel_calls.h"
#include "search_calls.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kosine {
namespace {

using Ints = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;
using OutVectors = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutNorms = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::span<const std::int32_t> span_of(const Ints& array) { return {array.data(), array.size()}; }

// Reads the fields of a step of kosine_kernels/steps.py.
class StepReader {
 public:
  explicit StepReader(nb::handle step)
      : step_(step), kind_(nb::cast<std::string>(step.type().attr("__name__"))) {}

  Step read() const {
    if (kind_ == "Embed") {
      return step::Embed{text("word"), field<std::optional<std::string>>("position"),
                         field<std::optional<std::string>>("token_type")};
    }
    if (kind_ == "Norm") {
      return norm();
    }
    if (kind_ == "Linear") return step::Linear{text("name")};
    if (kind_ == "Attention") {
      return step::Attention{text("qkv"), text("output"), field<std::size_t>("num_heads"),
                             field<std::size_t>("head_size"), field<bool>("bias"), rotary(),
                             field<std::optional<std::size_t>>("window"), distances(),
                             field<std::optional<std::size_t>>("num_key_value_heads"),
                             field<bool>("causal"), norm("query_norm"), norm("key_norm"),
                             norm("norm")};
    }
    if (kind_ == "FeedForward") {
      return step::FeedForward{text("up"), text("down"),
                               field<std::optional<std::string>>("gate"), field<bool>("bias"),
                               inner_activation_named(text("activation")), norm("norm")};
    }
    if (kind_ == "Pool") {
      std::vector<Pooling> modes;
      for (const auto& mode : field<std::vector<std::string>>("modes")) {
        modes.push_back(pooling_named(mode));
      }
      return step::Pool{modes};
    }
    if (kind_ == "Dense") {
      return step::Dense{text("name"), field<bool>("bias"), activation_named(text("activation")),
                         field<bool>("use_residual")};
    }
    throw nb::type_error(("step " + kind_ + " is unknown; those of kosine_kernels.steps are known")
                             .c_str());
  }

 private:
  std::optional<step::Rotary> rotary() const {
    const nb::object value = step_.attr("rotary");
    if (value.is_none()) return std::nullopt;
    const StepReader reader(value);
    return step::Rotary{reader.field<double>("theta"), reader.field<std::size_t>("rows"),
                        reader.field<double>("divisor")};
  }

  step::Norm norm() const {
    return {text("name"), field<float>("eps"), field<bool>("bias"), field<bool>("keeps_x"),
            field<bool>("rms")};
  }

  std::optional<step::Norm> norm(const char* name) const {
    const nb::object value = step_.attr(name);
    if (value.is_none()) return std::nullopt;
    return StepReader(value).norm();
  }

  std::optional<step::Distances> distances() const {
    const nb::object value = step_.attr("distances");
    if (value.is_none()) return std::nullopt;
    const StepReader reader(value);
    return step::Distances{reader.text("name"), reader.field<std::vector<std::size_t>>("buckets")};
  }

  std::string text(const char* name) const { return field<std::string>(name); }

  template <class T>
  T field(const char* name) const {
    T value{};
    if (!nb::try_cast(step_.attr(name), value)) {
      throw nb::type_error(
          (kind_ + "." + name + " is " + nb::cast<std::string>(nb::repr(step_.attr(name))) +
           "; a value of its type, and in range, is needed").c_str());
    }
    return value;
  }

  nb::handle step_;
  std::string kind_;
};

void make_engine(Engine* self, const nb::dict& arrays, const nb::sequence& steps,
                 const std::string& dtype, const std::set<std::string>& bytes_only,
                 const std::string& isa, int threads, bool spin, const std::string& guard) {
  Tensors tensors;
  std::vector<Array> alive;  // the arrays' memory, until all is packed
  for (auto [key, value] : arrays) {
    const auto name = nb::cast<std::string>(key);
    Array array;
    const bool fits = nb::try_cast(value, array, false);
    const bool bytes = fits && array.dtype() == nb::dtype<std::int8_t>();
    if (!fits || (!bytes && array.dtype() != nb::dtype<float>())) {
      throw nb::type_error(
          ("tensor " + name + " is not a C-contiguous float32 or int8 array; convert it").c_str());
    }
    Tensor tensor{array.data(), bytes, {}};
    for (std::size_t i = 0; i < array.ndim(); ++i) tensor.shape.push_back(array.shape(i));
    tensors.emplace(name, std::move(tensor));
    alive.push_back(std::move(array));
  }
  std::vector<Step> unpacked;
  for (nb::handle step : steps) unpacked.push_back(StepReader(step).read());
  const Guard chosen = guard_named(guard);
  const nb::gil_scoped_release released;
  new (self) Engine(tensors, unpacked, dtype, bytes_only, isa, threads, spin, chosen);
}

void forward_engine(const Engine& self, const Ints& ids, const Ints& starts, const Ints& positions,
                const std::optional<Ints>& skip, const OutVectors& vectors,
                const OutNorms& norms, const std::optional<OutVectors>& states) {
  if (vectors.shape(0) != norms.shape(0)) {
    throw std::invalid_argument("vectors and norms have " + std::to_string(vectors.shape(0)) +
                                " and " + std::to_string(norms.shape(0)) +
                                " rows; equal numbers are needed");
  }
  std::optional<std::span<const std::int32_t>> left_out;
  if (skip.has_value()) left_out = span_of(*skip);
  std::optional<std::span<float>> kept;
  if (states.has_value()) kept = {states->data(), states->size()};
  const nb::gil_scoped_release released;
  self.forward(span_of(ids), span_of(starts), span_of(positions), left_out,
               {vectors.data(), vectors.size()}, {norms.data(), norms.size()}, kept);
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
      .def("__init__", make_engine, "tensors"_a, "steps"_a, nb::kw_only(), "dtype"_a, "bytes_only"_a,
           "isa"_a, "threads"_a, "spin"_a, "guard"_a)
      .def("forward", forward_engine, "ids"_a.noconvert(), "starts"_a.noconvert(),
           "positions"_a.noconvert(), "skip"_a.noconvert().none(), "vectors"_a.noconvert(),
           "norms"_a.noconvert(), "states"_a.noconvert().none())
      .def_prop_ro("dim", [](const Engine& self) { return self.model().dim; })
      .def_prop_ro("hidden", [](const Engine& self) { return self.model().hidden; })
      .def_prop_ro("isa", [](const Engine& self) { return name_of(self.model().kernels.isa); })
      .def_prop_ro("dtype", [](const Engine& self) { return name_of(self.model().kernels.dtype); })
      .def_prop_ro("threads", &Engine::threads)
      .def_prop_ro("packed_bytes", [](const Engine& self) { return self.model().bytes(); });

  bind_kernel_calls(m);
  bind_search_calls(m);
}
