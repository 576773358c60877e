// One kernel at a time from Python, for tests and measurements: each call lays its operands out
// in guarded buffers of exactly the extents that the kernel may touch.
#pragma once

#include <nanobind/nanobind.h>

namespace kosine {

void bind_kernel_calls(nanobind::module_& module);

}  // namespace kosine
