// Registers the custom operators of domain echovlm, version 1, with ONNX Runtime, each for the provider that runs it.
#include <mutex>

#include "../../attention/cpu/ort_kernels.hpp"
#include "c_interface.hpp"
#include "cpu_kernels.hpp"
#include "cuda_kernel.hpp"

namespace echovlm::ort {
namespace {

template <class Kernel>
const CustomOp& on_cpu() {
  static const CustomOp op = [] {
    CustomOp made = custom_op<Kernel>();
    made.get_provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
    made.get_input_type = [](const CustomOp*, std::size_t i) { return Kernel::typed_float(i) ? kFloat : kUndefined; };
    made.get_output_type = [](const CustomOp*, std::size_t) { return kFloat; };
    return made;
  }();
  return op;
}

template <ElementType kX>
const CustomOp& on_cuda() {
  static const CustomOp op = cuda_dual_path_moe<kX>();
  return op;
}

}  // namespace
}  // namespace echovlm::ort

// The function that SessionOptions.register_custom_ops_library calls.
extern "C" ECHOVLM_EXPORT echovlm::ort::Status* RegisterCustomOps(echovlm::ort::SessionOptions* options,
                                                                 const echovlm::ort::ApiBase* base) {
  using namespace echovlm::ort;
  const Api* api = base->get_api(kApiVersion);
  if (!api) {
    // Version 1 of the API suffices to report the error.
    const Api* oldest = base->get_api(1);
    const std::string message = std::string("echovlm's operators need ONNX Runtime 1.") + std::to_string(kApiVersion) +
                                " or later, and this is " + base->get_version() + ".";
    return oldest ? oldest->get<Api::CreateStatus>()(kFail, message.c_str()) : nullptr;
  }
  return guarded(*api, "echovlm's operators", [&] {
    // One domain for the life of the process: sessions refer to it, and we are not told when the last one ends.
    static CustomOpDomain* domain = nullptr;
    static std::once_flag once;
    std::call_once(once, [&] {
      call<Api::CreateCustomOpDomain>(*api, "echovlm", &domain);
      for (const CustomOp* op :
           {&on_cpu<DualPathMoEKernel>(), &on_cpu<BlockQuantLinearKernel>(), &on_cpu<BlockQuantMLPKernel>(),
            &on_cpu<CachedAttentionKernel>(), &on_cpu<SelfAttentionKernel>(), &on_cuda<kFloat16>(), &on_cuda<kBFloat16>()})
        call<Api::CustomOpDomainAdd>(*api, domain, op);
    });
    call<Api::AddCustomOpDomain>(*api, options, domain);
  });
}
