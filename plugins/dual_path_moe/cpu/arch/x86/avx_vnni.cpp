// AVX-VNNI: AVX-512's product instruction on 256-bit registers, in Intel's client processors since 2021.
#include "../../../../attention/cpu/byte_attention.hpp"
#include "avx2.hpp"
#include "dispatch.hpp"

namespace echovlm {

const Kernels kAvxVnniKernels = table<Avx2<true>>("avx_vnni", ByteAttentionTiles<Avx2<true>>::kTable);

}  // namespace echovlm
