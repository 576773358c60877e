// The search of search.h, for Python.
#pragma once

#include <nanobind/nanobind.h>

namespace kosine {

void bind_search_calls(nanobind::module_& module);

}  // namespace kosine
