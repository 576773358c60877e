#include "search_calls.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>

#include "search.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kosine {
namespace {

using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Corpus = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<std::int64_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scores = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void need(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(what);
}

void check(const Search& search, const Indices& indices, const Scores& scores) {
  need(search.count > 0 && search.width > 0, "the corpus is empty");
  need(search.k >= 1 && search.k <= search.count, "k is out of range");
  need(scores.shape(0) == search.num_queries && indices.shape(0) == search.num_queries &&
           indices.shape(1) == search.k,
       "indices and scores do not fit");
}

Rows kind_of(const Corpus& corpus, bool bits) {
  if (bits) {
    need(corpus.dtype() == nb::dtype<std::uint8_t>(), "bits are not uint8");
    return Rows::kBits;
  }
  if (corpus.dtype() == nb::dtype<float>()) return Rows::kFloats;
  if (corpus.dtype() == nb::dtype<std::uint8_t>()) return Rows::kBytes;
  need(corpus.dtype() == nb::dtype<std::int8_t>(), "the corpus is not float32, int8 or uint8");
  return Rows::kSignedBytes;
}

void products(const Floats& queries, const Corpus& corpus, bool bits,
              const std::optional<Row>& shift, const std::optional<Row>& scale, bool normalise,
              int threads, const std::string& isa, const Indices& indices, const Scores& scores) {
  const Rows kind = kind_of(corpus, bits);
  const std::size_t depth = queries.shape(1), width = corpus.shape(1);
  need(kind == Rows::kBits ? width == (depth + 7) / 8 : width == depth,
       "queries and corpus do not fit");
  const bool bytes = kind == Rows::kBytes || kind == Rows::kSignedBytes;
  need(!bytes || (shift.has_value() && scale.has_value() && shift->shape(0) == depth &&
                  scale->shape(0) == depth),
       "shift and scale do not fit");
  const Search search = {
      .kind = kind,
      .corpus = corpus.data(),
      .count = corpus.shape(0),
      .width = width,
      .depth = depth,
      .shift = bytes ? shift->data() : nullptr,
      .scale = bytes ? scale->data() : nullptr,
      .normalise = normalise,
      .queries = queries.data(),
      .num_queries = queries.shape(0),
      .k = scores.shape(1),
      .threads = threads,
      .indices = indices.data(),
      .scores = scores.data(),
  };
  check(search, indices, scores);
  const nb::gil_scoped_release released;
  find_products(search, isa);
}

void distances(const Bytes& queries, const Bytes& corpus, int threads, const std::string& isa,
               const Indices& indices, const Scores& scores) {
  need(queries.shape(1) == corpus.shape(1), "queries and corpus do not fit");
  const Search search = {
      .kind = Rows::kBits,
      .corpus = corpus.data(),
      .count = corpus.shape(0),
      .width = corpus.shape(1),
      .depth = 8 * corpus.shape(1),
      .shift = nullptr,
      .scale = nullptr,
      .normalise = false,
      .queries = queries.data(),
      .num_queries = queries.shape(0),
      .k = scores.shape(1),
      .threads = threads,
      .indices = indices.data(),
      .scores = scores.data(),
  };
  check(search, indices, scores);
  const nb::gil_scoped_release released;
  find_distances(search, isa);
}

}  // namespace

void bind_search_calls(nb::module_& module) {
  nb::module_ m = module.def_submodule("search", "Best rows; see kosine_kernels.search.");
  m.def("products", products, "queries"_a.noconvert(), "corpus"_a.noconvert(), "bits"_a,
        "shift"_a.noconvert().none(), "scale"_a.noconvert().none(), "normalise"_a, "threads"_a,
        "isa"_a, "indices"_a.noconvert(), "scores"_a.noconvert());
  m.def("distances", distances, "queries"_a.noconvert(), "corpus"_a.noconvert(), "threads"_a,
        "isa"_a, "indices"_a.noconvert(), "scores"_a.noconvert());
}

}  // namespace kosine
