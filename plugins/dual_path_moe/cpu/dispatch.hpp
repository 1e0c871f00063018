// Lists the kernels that this computer can run, and holds the table that all operators use.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace echovlm {

extern const Kernels kAvx512VnniKernels, kAvxVnniKernels, kAvx2Kernels;
extern const Kernels kNeonI8mmKernels, kNeonDotprodKernels;
extern const Kernels kPortableKernels;

// Returns the kernels whose instructions this processor has, best first; never empty.
const std::vector<const Kernels*>& available_kernels();

// Returns the best kernels, or those chosen with `use_kernels`.
const Kernels& kernels();

// Switches all operators to the kernels of this name. Returns false, and changes nothing, if they are not available.
bool use_kernels(const char* name);

}  // namespace echovlm
