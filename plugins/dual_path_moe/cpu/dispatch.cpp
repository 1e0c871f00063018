// Chooses the kernels for this processor once, at first use.
#include "dispatch.hpp"

#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace echovlm {
namespace {

#if defined(__x86_64__)
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
#elif defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;
#else
  return true;  // every ARM computer that Apple makes
#endif
}

bool has_i8mm() {
#if defined(__linux__)
  return getauxval(AT_HWCAP2) >> 13 & 1;
#else
  return false;
#endif
}
#endif

std::vector<const Kernels*> probe() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back(&kAvx512VnniKernels);
#if defined(ECHOVLM_AVX_VNNI)
  if (avx2 && has_avx_vnni()) found.push_back(&kAvxVnniKernels);
#endif
  if (avx2) found.push_back(&kAvx2Kernels);
#elif defined(__aarch64__)
  if (has_dotprod() && has_i8mm()) found.push_back(&kNeonI8mmKernels);
  if (has_dotprod()) found.push_back(&kNeonDotprodKernels);
#endif
  found.push_back(&kPortableKernels);
  return found;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> kernels{available_kernels().front()};
  return kernels;
}

}  // namespace

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> found = probe();
  return found;
}

const Kernels& kernels() { return *chosen().load(std::memory_order_acquire); }

bool use_kernels(const char* name) {
  for (const Kernels* candidate : available_kernels()) {
    if (std::strcmp(candidate->name, name) != 0) continue;
    chosen().store(candidate, std::memory_order_release);
    return true;
  }
  return false;
}

}  // namespace echovlm
