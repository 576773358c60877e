// Which ISA levels this processor and this operating system offer, and the table for one.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace kosine {

const char* name_of(Isa isa);
const char* name_of(Dtype dtype);
Dtype dtype_named(const std::string& name);  // throws std::invalid_argument

// Lowest first; empty on a processor without AVX2. Never the emulation of one.
std::vector<Isa> isa_levels();

struct Unavailable {
  std::string message;
};

// The best table of `dtype` that runs here at or below `level`, or the machine's best where `level`
// is empty. Throws std::invalid_argument for a name that no level has, Unavailable where the machine
// lacks the level or no table at or below it has the dtype.
const Kernels& select_kernels(Dtype dtype, const std::string& level);

}  // namespace kosine
