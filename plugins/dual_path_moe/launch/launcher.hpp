// Launches one plan's kernels on a stream, through the driver API.
#pragma once

#include <array>
#include <cstdint>

#include "archive.hpp"
#include "attributes.hpp"
#include "kernel_call.hpp"
#include "planner.hpp"
#include "signature.hpp"

namespace echovlm {

// The device pointers of one call; scales are null if weights are floating-point.
struct CallBuffers {
  std::array<const void*, kMaxInputs> inputs{};  // in README.md's order
  void* y = nullptr;
  void* workspace = nullptr;  // at least as large as the plan's
};

class Launcher {
 public:
  // Plans the launches for `tokens` of `hidden` values and loads the kernels into the calling thread's context. `activation` is
  // kFloat16 or kBFloat16; `tile_tokens` is the prefill kernels' tile; if the device has no such kernel, another tile is used. Throws
  // std::runtime_error if there is no driver, or no kernels for this device.
  Launcher(const Archive& archive, const Attributes& attributes, std::uint32_t activation, std::int64_t hidden,
           std::int64_t tokens, std::uint32_t tile_tokens);

  // Neither allocates nor waits, so that the stream may be in capture mode.
  void launch(const CallBuffers& buffers, cuda::Stream stream) const;

  const LaunchPlan& plan() const { return plan_; }

 private:
  MoeShape shape_;
  std::int32_t top_k_, norm_topk_prob_;
  std::int64_t tokens_;
  std::array<LoadedKernel, kKernels> kernels_{};
  LaunchPlan plan_;
};

}  // namespace echovlm
