// AVX2 with FMA: every x86 computer since 2015.
#include "avx2.hpp"
#include "dispatch.hpp"

namespace echovlm {

const Kernels kAvx2Kernels = table<Avx2<false>>("avx2");

}  // namespace echovlm
