// AVX-VNNI: AVX-512's product instruction on 256-bit registers, in Intel's client processors since 2021.
#include "avx2.hpp"
#include "dispatch.hpp"

namespace echovlm {

const Kernels kAvxVnniKernels = table<Avx2<true>>("avx_vnni");

}  // namespace echovlm
