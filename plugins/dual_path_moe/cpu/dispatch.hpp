// Which kernels this computer can run, and the one table that everything uses.
#pragma once

#include <vector>

#include "kernels.hpp"

namespace echovlm {

extern const Kernels kAvx512VnniKernels, kAvxVnniKernels, kAvx2Kernels;
extern const Kernels kNeonI8mmKernels, kNeonDotprodKernels;
extern const Kernels kPortableKernels;

// Those whose instructions this processor has, best first; never empty.
const std::vector<const Kernels*>& available_kernels();

// The best, unless `use_kernels` named another.
const Kernels& kernels();

// Makes everything from now on use the kernels of this name; false, and no change, where they are not available.
bool use_kernels(const char* name);

}  // namespace echovlm
