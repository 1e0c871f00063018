// The table of callbacks by which ONNX Runtime makes, calls and destroys an operator's kernels.
#pragma once

#include <memory>

#include "ort_session.hpp"

namespace echovlm::ort {

template <class Kernel>
struct Held {
  const Api& api;
  Kernel kernel;
};

// The callbacks that all operators have in common; provider and types are still to be set.
//
// A kernel has its operator's name as kName, kInputs inputs of which the first kRequiredInputs must be there, one output, a constructor
// from (Api, Attributes), and compute(KernelContext*).
template <class Kernel>
CustomOp custom_op() {
  CustomOp made{};
  made.version = kApiVersion;
  made.get_name = [](const CustomOp*) { return Kernel::kName; };
  made.get_input_count = [](const CustomOp*) { return Kernel::kInputs; };
  made.get_output_count = [](const CustomOp*) -> std::size_t { return 1; };
  made.get_input_characteristic = [](const CustomOp*, std::size_t i) {
    return i < Kernel::kRequiredInputs ? kRequired : kOptional;
  };
  made.get_output_characteristic = [](const CustomOp*, std::size_t) { return kRequired; };
  made.get_input_memory_type = [](const CustomOp*, std::size_t) -> int { return kDefaultMemory; };
  made.get_start_version = [](const CustomOp*) { return 1; };
  made.get_end_version = [](const CustomOp*) { return 1; };
  made.create_kernel_v2 = [](const CustomOp*, const Api* api, const KernelInfo* info, void** kernel) {
    return guarded(*api, Kernel::kName, [&] {
      *kernel = std::unique_ptr<Held<Kernel>>(new Held<Kernel>{*api, Kernel(*api, Attributes(*api, info))}).release();
    });
  };
  made.compute_v2 = [](void* kernel, KernelContext* context) {
    const auto& held = *static_cast<const Held<Kernel>*>(kernel);
    return guarded(held.api, Kernel::kName, [&] { held.kernel.compute(context); });
  };
  made.destroy = [](void* kernel) { std::unique_ptr<Held<Kernel>>(static_cast<Held<Kernel>*>(kernel)); };
  return made;
}

}  // namespace echovlm::ort
