// ARMv8.2 with dot products: Cortex-A76 and later, Jetson Orin, Raspberry Pi 5.
#include "dispatch.hpp"
#include "neon.hpp"

namespace echovlm {

const Kernels kNeonDotprodKernels = table<Neon>("neon_dotprod");

}  // namespace echovlm
