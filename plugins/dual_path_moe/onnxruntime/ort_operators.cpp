// Registers the custom operators echovlm::DualPathMoE and echovlm::BlockQuantLinear, version 1, with ONNX Runtime.
#include <memory>
#include <mutex>

#include "../../attention/cpu/ort_kernels.hpp"
#include "block_quant_linear.hpp"
#include "c_interface.hpp"
#include "dispatch.hpp"
#include "dual_path_moe.hpp"
#include "ort_session.hpp"

namespace echovlm::ort {
namespace {

Packing packing_of(const Attributes& attributes) {
  return {static_cast<int>(attributes.integer("bits")), attributes.size("block_size")};
}

// Input numbers are those of README.md.
class DualPathMoEKernel {
 public:
  static constexpr const char* kName = "DualPathMoE";
  static constexpr std::size_t kInputs = 11, kRequiredInputs = 8;
  static constexpr bool typed_float(std::size_t input) { return input < 5; }

  DualPathMoEKernel(const Api& api, const Attributes& attributes)
      : api_(api),
        moe_(attributes.sizes("group_widths"), attributes.size("top_k"), attributes.integer("norm_topk_prob") != 0,
             packing_of(attributes)) {}

  void compute(KernelContext* context) const {
    const Call call(api_, context);
    const Tensor x = call.input(0);
    const std::size_t hidden = x.last(), total = moe_.total_width();
    const Packing& packing = moe_.packing();
    packing.validate_width("hidden width", hidden);
    const DualPathMoEInputs inputs{static_cast<const float*>(x.data),
                                   x.leading(),
                                   hidden,
                                   call.floats(1, "router", moe_.experts(), hidden),
                                   call.floats(2, "shared_gate", 1, hidden),
                                   call.floats(3, "coefficient", 2, hidden),
                                   call.floats(4, "coefficient_bias", 1, 2),
                                   call.weight(5, 8, "gate", packing, total, hidden),
                                   call.weight(6, 9, "up", packing, total, hidden),
                                   call.weight(7, 10, "down", packing, hidden, total)};
    float* y = call.output(x.shape, x.rank);
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    moe_.run(kernels(), inputs, y, SessionThreads(api_, context), *workspace);
  }

 private:
  const Api& api_;
  DualPathMoE moe_;
};

class BlockQuantLinearKernel {
 public:
  static constexpr const char* kName = "BlockQuantLinear";
  static constexpr std::size_t kInputs = 4, kRequiredInputs = 3;
  static constexpr bool typed_float(std::size_t input) { return input == 0 || input == 3; }

  BlockQuantLinearKernel(const Api& api, const Attributes& attributes) : api_(api), packing_(packing_of(attributes)) {
    packing_.validate();
    if (packing_.bits == 0) throw std::invalid_argument("BlockQuantLinear takes bits 4 or 8.");
  }

  void compute(KernelContext* context) const {
    const Call call(api_, context);
    const Tensor x = call.input(0), weight = call.input(1);
    const std::size_t columns = x.last();
    packing_.validate_width("input width", columns);
    const std::size_t rows = weight.leading();
    const float* bias = call.input(3).data ? call.floats(3, "bias", 1, rows) : nullptr;
    const BlockQuantLinearInputs inputs{static_cast<const float*>(x.data), x.leading(),
                                        call.weight(1, 2, "weight", packing_, rows, columns), rows, bias};
    std::int64_t shape[kMaxRank];
    if (x.rank == 0 || x.rank > kMaxRank) throw std::invalid_argument("x must have between 1 and 8 axes.");
    std::copy(x.shape, x.shape + x.rank, shape);
    shape[x.rank - 1] = static_cast<std::int64_t>(rows);
    float* y = call.output(shape, x.rank);
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    block_quant_linear(kernels(), packing_, inputs, y, SessionThreads(api_, context), *workspace);
  }

 private:
  static constexpr std::size_t kMaxRank = 8;
  const Api& api_;
  Packing packing_;
};

template <class Kernel>
struct Held {
  const Api& api;
  Kernel kernel;
};

// The callbacks of one operator.
template <class Kernel>
const CustomOp& custom_op() {
  static const CustomOp op = [] {
    CustomOp made{};
    made.version = kApiVersion;
    made.get_name = [](const CustomOp*) { return Kernel::kName; };
    made.get_provider = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU's
    made.get_input_type = [](const CustomOp*, std::size_t i) { return Kernel::typed_float(i) ? kFloat : kUndefined; };
    made.get_input_count = [](const CustomOp*) { return Kernel::kInputs; };
    made.get_output_type = [](const CustomOp*, std::size_t) { return kFloat; };
    made.get_output_count = [](const CustomOp*) -> std::size_t { return 1; };
    made.get_input_characteristic = [](const CustomOp*, std::size_t i) {
      return i < Kernel::kRequiredInputs ? kRequired : kOptional;
    };
    made.get_output_characteristic = [](const CustomOp*, std::size_t) { return kRequired; };
    made.get_input_memory_type = [](const CustomOp*, std::size_t) { return 0; };
    made.get_start_version = [](const CustomOp*) { return 1; };
    made.get_end_version = [](const CustomOp*) { return 1; };
    made.create_kernel_v2 = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
      return guarded(*api, [&] {
        *kernel = std::make_unique<Held<Kernel>>(Held<Kernel>{*api, Kernel(*api, Attributes(*api, info))}).release();
      });
    };
    made.compute_v2 = [](void* kernel, KernelContext* context) {
      const auto& held = *static_cast<const Held<Kernel>*>(kernel);
      return guarded(held.api, [&] { held.kernel.compute(context); });
    };
    made.destroy = [](void* kernel) { std::unique_ptr<Held<Kernel>>(static_cast<Held<Kernel>*>(kernel)); };
    return made;
  }();
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
  return guarded(*api, [&] {
    // One domain for the life of the process: sessions refer to it, and we are not told when the last one ends.
    static CustomOpDomain* domain = nullptr;
    static std::once_flag once;
    std::call_once(once, [&] {
      call<Api::CreateCustomOpDomain>(*api, "echovlm", &domain);
      call<Api::CustomOpDomainAdd>(*api, domain, &custom_op<DualPathMoEKernel>());
      call<Api::CustomOpDomainAdd>(*api, domain, &custom_op<BlockQuantLinearKernel>());
      call<Api::CustomOpDomainAdd>(*api, domain, &custom_op<CachedAttentionKernel>());
      call<Api::CustomOpDomainAdd>(*api, domain, &custom_op<SelfAttentionKernel>());
    });
    call<Api::AddCustomOpDomain>(*api, options, domain);
  });
}
