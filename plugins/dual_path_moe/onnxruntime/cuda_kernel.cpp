#include "cuda_kernel.hpp"

#include <array>
#include <limits>

#include "embedded_archive.hpp"
#include "signature.hpp"

namespace echovlm::ort {
namespace {

std::int32_t narrow(const char* name, std::int64_t value) {
  if (value < std::numeric_limits<std::int32_t>::min() || value > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument(std::string(name) + " holds " + std::to_string(value) + ", which is out of range.");
  return static_cast<std::int32_t>(value);
}

echovlm::Attributes validated(const Attributes& node) {
  echovlm::Attributes attributes;
  for (const std::size_t width : node.sizes("group_widths"))
    attributes.group_widths.push_back(narrow("group_widths", static_cast<std::int64_t>(width)));
  attributes.top_k = narrow("top_k", node.integer("top_k"));
  attributes.norm_topk_prob = narrow("norm_topk_prob", node.integer("norm_topk_prob"));
  attributes.bits = narrow("bits", node.integer("bits"));
  attributes.block_size = narrow("block_size", node.integer("block_size"));
  attributes.validate();
  return attributes;
}

echovlm::ElementType element_type(ElementType type) {
  switch (type) {
    case kFloat16: return echovlm::ElementType::kHalf;
    case kBFloat16: return echovlm::ElementType::kBFloat16;
    case kFloat: return echovlm::ElementType::kFloat;
    case kInt8: return echovlm::ElementType::kInt8;
    default: return echovlm::ElementType::kOther;
  }
}

using Tensors = std::array<Tensor, kMaxInputs>;

// Throws std::invalid_argument unless the inputs are those of ../launch/README.md.
void check(const echovlm::Attributes& attributes, const Tensors& tensors) {
  std::size_t count = tensors.size();
  while (count > 1 && tensors[count - 1].type == kUndefined) --count;
  std::vector<echovlm::ElementType> types;
  std::vector<Shape> shapes;
  for (std::size_t i = 0; i < count; ++i) {
    types.push_back(element_type(tensors[i].type));
    shapes.emplace_back(tensors[i].shape, tensors[i].shape + tensors[i].rank);
  }
  check_types(attributes, types);
  check_shapes(attributes, shapes);
}

}  // namespace

ProviderMemory::ProviderMemory(const Api& api, const KernelInfo* info) : api_(api) {
  call<Api::KernelInfoGetAllocator>(api_, info, kDefaultMemory, &allocator_);
  call<Api::AllocatorGetInfo>(api_, static_cast<const Allocator*>(allocator_), &whose_);
}

ProviderMemory::~ProviderMemory() { api_.get<Api::ReleaseAllocator>()(allocator_); }

ProviderMemory::Scratch::Scratch(const ProviderMemory& memory, const KernelContext* context, std::size_t bytes) : memory_(memory) {
  call<Api::KernelContextGetScratchBuffer>(memory_.api_, context, memory_.whose_, bytes, &data_);
}

ProviderMemory::Scratch::~Scratch() {
  if (Status* status = memory_.api_.get<Api::AllocatorFree>()(memory_.allocator_, data_))
    memory_.api_.get<Api::ReleaseStatus>()(status);
}

CudaDualPathMoE::CudaDualPathMoE(const Api& api, const Attributes& attributes)
    : api_(api), attributes_(validated(attributes)), memory_(api, attributes.info()) {
  embedded_archive();  // while the session is made, not at the first token
}

void CudaDualPathMoE::compute(KernelContext* context) const {
  const Call call(api_, context);
  Tensors tensors;
  CallBuffers buffers;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    tensors[i] = call.input(i);
    buffers.inputs[i] = tensors[i].data;
  }
  check(attributes_, tensors);
  const Tensor& x = tensors[0];
  const auto tokens = static_cast<std::int64_t>(x.leading());
  buffers.y = call.untyped_output(x.shape, x.rank);
  if (tokens == 0) return;
  void* stream = nullptr;
  ort::call<Api::KernelContextGetGPUComputeStream>(api_, static_cast<const KernelContext*>(context), &stream);
  const std::shared_ptr<const Launcher> prepared =
      launcher(x.type == kBFloat16 ? echovlm::kBFloat16 : echovlm::kFloat16, static_cast<std::int64_t>(x.last()), tokens);
  const ProviderMemory::Scratch workspace(memory_, context, prepared->plan().workspace.bytes);
  buffers.workspace = workspace.data();
  prepared->launch(buffers, static_cast<cuda::Stream>(stream));
}

std::shared_ptr<const Launcher> CudaDualPathMoE::launcher(std::uint32_t activation, std::int64_t hidden,
                                                          std::int64_t tokens) const {
  constexpr std::uint32_t largest_that_the_tokens_fill = 0;
  const std::lock_guard lock(mutex_);
  if (!last_ || last_hidden_ != hidden || last_tokens_ != tokens) {
    last_ = std::make_shared<Launcher>(embedded_archive(), attributes_, activation, hidden, tokens, largest_that_the_tokens_fill);
    last_hidden_ = hidden;
    last_tokens_ = tokens;
  }
  return last_;
}

}  // namespace echovlm::ort
