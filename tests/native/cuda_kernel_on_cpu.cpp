// The CUDA kernel of DualPathMoE in a real session of ONNX Runtime on a machine without a GPU: registered for the CPU's provider,
// with host memory in the device's place. Only what the CPU's provider lacks is replaced: a stream, and scratch memory on it.
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "cuda_kernel.hpp"

namespace {

using namespace echovlm::ort;

constexpr std::size_t kSlots = sizeof(Api) / sizeof(void (*)()), kScratchAlignment = 256;
constexpr int kPoison = 0xFF;  // NaN, and numbers that lead out of every buffer
const Api* real = nullptr;

// ONNX Runtime has these slots, too; called in a way that needs no GPU, so that a wrong index shows.
Status* stream_of(const KernelContext* context, void** stream) {
  *stream = context ? const_cast<KernelContext*>(context) : nullptr;
  if (Status* status = real->get<Api::KernelContextGetGPUComputeStream>()(context, stream)) return status;
  if (*stream) return real->get<Api::CreateStatus>()(kFail, "the CPU's provider has a stream");
  *stream = reinterpret_cast<void*>(0x77);
  return nullptr;
}

Status* scratch_of(const KernelContext* context, const MemoryInfo* memory, std::size_t bytes, void** data) {
  *data = const_cast<KernelContext*>(context);
  if (Status* status = real->get<Api::KernelContextGetScratchBuffer>()(context, memory, 0, data)) return status;
  if (*data) return real->get<Api::CreateStatus>()(kFail, "no bytes have an address");
  *data = std::aligned_alloc(kScratchAlignment, (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment);
  std::memset(*data, kPoison, bytes);
  return nullptr;
}

Status* give_back(Allocator*, void* data) {
  std::free(data);
  return nullptr;
}

const Api& with_a_device(const Api* api) {
  static void (*slots[kSlots])();
  static std::once_flag once;
  std::call_once(once, [&] {
    real = api;
    std::memcpy(slots, static_cast<const void*>(api), sizeof slots);
    slots[Api::KernelContextGetGPUComputeStream::index] = reinterpret_cast<void (*)()>(stream_of);
    slots[Api::KernelContextGetScratchBuffer::index] = reinterpret_cast<void (*)()>(scratch_of);
    slots[Api::AllocatorFree::index] = reinterpret_cast<void (*)()>(give_back);
  });
  return *reinterpret_cast<const Api*>(slots);
}

template <ElementType kX>
const CustomOp& on_cpu() {
  static const CustomOp op = [] {
    CustomOp made = cuda_dual_path_moe<kX>();
    made.get_provider = [](const CustomOp*) -> const char* { return nullptr; };
    made.create_kernel_v2 = [](const CustomOp* self, const Api* api, const KernelInfo* info, void** kernel) {
      return cuda_dual_path_moe<kX>().create_kernel_v2(self, &with_a_device(api), info, kernel);
    };
    return made;
  }();
  return op;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions* options, const ApiBase* base) {
  const Api& api = *base->get_api(kApiVersion);
  static CustomOpDomain* domain = nullptr;
  return guarded(api, "tests", [&] {
    if (!domain) {
      call<Api::CreateCustomOpDomain>(api, "echovlm", &domain);
      call<Api::CustomOpDomainAdd>(api, domain, &on_cpu<kFloat16>());
      call<Api::CustomOpDomainAdd>(api, domain, &on_cpu<kBFloat16>());
    }
    call<Api::AddCustomOpDomain>(api, options, domain);
  });
}
