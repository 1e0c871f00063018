// DualPathMoE as ONNX Runtime's CUDA provider calls it: the launcher of ../launch on the provider's stream, in the provider's memory.
#pragma once

#include <memory>
#include <mutex>

#include "attributes.hpp"
#include "custom_op.hpp"
#include "launcher.hpp"

namespace echovlm::ort {

// The memory that a kernel's provider gives it while it runs. Not copied: the allocator is released once.
class ProviderMemory {
 public:
  ProviderMemory(const Api& api, const KernelInfo* info);
  ~ProviderMemory();
  ProviderMemory(const ProviderMemory&) = delete;
  ProviderMemory& operator=(const ProviderMemory&) = delete;

  // Scratch memory of one call, given back when the call has queued its work: the arena lends it again only to what the same stream does
  // later, or after a synchronization. Its addresses come from the provider's arena, so that a captured graph may keep them.
  class Scratch {
   public:
    Scratch(const ProviderMemory& memory, const KernelContext* context, std::size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    void* data() const { return data_; }

   private:
    const ProviderMemory& memory_;
    void* data_ = nullptr;
  };

 private:
  const Api& api_;
  Allocator* allocator_ = nullptr;
  const MemoryInfo* whose_ = nullptr;
};

class CudaDualPathMoE {
 public:
  static constexpr const char* kName = "DualPathMoE";
  static constexpr std::size_t kInputs = kMaxInputs, kRequiredInputs = 8;

  // Throws std::invalid_argument for attributes that the GPU's kernels do not take, std::runtime_error if this library has no kernels.
  CudaDualPathMoE(const Api& api, const Attributes& attributes);

  // Queues the kernels on the provider's stream, without waiting. May be called from several threads.
  void compute(KernelContext* context) const;

 private:
  // Decoding asks for the same number of tokens again and again.
  std::shared_ptr<const Launcher> launcher(std::uint32_t activation, std::int64_t hidden, std::int64_t tokens) const;

  const Api& api_;
  echovlm::Attributes attributes_;
  ProviderMemory memory_;
  mutable std::mutex mutex_;  // guards the next three
  mutable std::shared_ptr<const Launcher> last_;
  mutable std::int64_t last_hidden_ = 0, last_tokens_ = 0;
};

// The operator for x of type kX, kFloat16 or kBFloat16. The other inputs' types are left to compute, whose errors name the input.
template <ElementType kX>
CustomOp cuda_dual_path_moe() {
  CustomOp made = custom_op<CudaDualPathMoE>();
  made.get_provider = [](const CustomOp*) -> const char* { return "CUDAExecutionProvider"; };
  made.get_input_type = [](const CustomOp*, std::size_t i) { return i == 0 ? kX : kUndefined; };
  made.get_output_type = [](const CustomOp*, std::size_t) { return kX; };
  return made;
}

}  // namespace echovlm::ort
