#include "launcher.hpp"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace echovlm {
namespace {

constexpr std::uintptr_t kPointerAlignment = 16;
constexpr unsigned kWarp = 32;
constexpr std::size_t kMostParameters = 20;

// One kernel's parameters, as cuLaunchKernel takes them: a pointer to each value.
class Parameters {
 public:
  void add(const void* pointer) { add_value(reinterpret_cast<std::uint64_t>(pointer)); }
  void add(std::int64_t number) { add_value(static_cast<std::uint32_t>(number)); }  // i32; the device is little-endian, too
  template <class... Values>
  void add_all(Values... values) {
    (add(values), ...);
  }

  std::size_t count() const { return count_; }
  void** pointers() { return pointers_.data(); }

 private:
  void add_value(std::uint64_t value) {
    values_.at(count_) = value;
    pointers_[count_] = &values_[count_];
    ++count_;
  }

  std::array<std::uint64_t, kMostParameters> values_;
  std::array<void*, kMostParameters> pointers_;
  std::size_t count_ = 0;
};

// All parameters that the kernels of one call can take.
struct Call {
  const MoeShape& shape;
  std::int64_t tokens, top_k, norm_topk_prob, splits;
  const CallBuffers& buffers;
  const void *group_weights, *inner, *parts, *expert_tokens, *expert_counts;
};

// ../cuda/README.md's table "Parameters, in order".
void add_parameters(Kernel kernel, const Call& call, Parameters& to) {
  const auto& [x, router, shared_gate, coefficient, coefficient_bias, gate, up, down, gate_scale, up_scale, down_scale] =
      call.buffers.inputs;
  const MoeShape& s = call.shape;
  const void* const y = call.buffers.y;
  const auto add_sizes = [&] { to.add_all(call.tokens, s.hidden, s.dense, s.shared, s.expert, s.experts); };
  switch (kernel) {
    case Kernel::kRoute:
      to.add_all(x, router, shared_gate, coefficient, coefficient_bias, call.group_weights);
      to.add_all(s.hidden, s.experts, call.top_k, call.norm_topk_prob);
      break;
    case Kernel::kSort:
      to.add_all(call.group_weights, call.expert_tokens, call.expert_counts);
      to.add_all(call.tokens, s.experts);
      break;
    case Kernel::kGateUpDecode:
      to.add_all(x, gate, up, gate_scale, up_scale, call.group_weights, call.inner);
      add_sizes();
      break;
    case Kernel::kGateUpPrefill:
      to.add_all(x, gate, up, gate_scale, up_scale, call.group_weights, call.expert_tokens, call.expert_counts, call.inner);
      add_sizes();
      break;
    case Kernel::kDownDecode:
      to.add_all(call.inner, down, down_scale, call.group_weights, call.parts);
      add_sizes();
      to.add(call.splits);
      break;
    case Kernel::kSumParts:
      to.add_all(call.parts, y);
      to.add_all(call.tokens * s.hidden, call.splits);
      break;
    case Kernel::kDownPrefill:
      to.add_all(call.inner, down, down_scale, call.group_weights, y);
      add_sizes();
      break;
  }
  const void* const scratch = nullptr;  // Triton's global and profile scratch, which these kernels do not use
  to.add_all(scratch, scratch);
}

// Kernels stay loaded as long as their context exists: all layers of all engines share them.
cuda::Function loaded_function(const KernelRecord& record) {
  static std::mutex mutex;
  static std::map<std::pair<unsigned long long, const KernelRecord*>, cuda::Function> functions;
  const cuda::Driver& driver = cuda::Driver::instance();
  const std::pair key{driver.current_context(), &record};
  const std::lock_guard lock(mutex);
  if (const auto found = functions.find(key); found != functions.end()) return found->second;
  const cuda::Function function =
      driver.function(driver.load_module(record.cubin), record.entry.c_str(), record.shared_bytes);
  return functions[key] = function;
}

std::string capability(std::uint32_t sm) { return std::to_string(sm / 10) + "." + std::to_string(sm % 10); }

[[noreturn]] void refuse_device(const Archive& archive, std::uint32_t sm, Kernel kernel) {
  std::string known;
  for (const std::uint32_t architecture : archive.architectures())
    known += (known.empty() ? "" : ", ") + capability(architecture);
  throw std::runtime_error(std::string("this library has no kernel ") + kernel_name(kernel) +
                           " for these weights on a device of compute capability " + capability(sm) +
                           " (it was built for " + known + "): rebuild it for this device.");
}

// Returns `wanted` if this device has it; otherwise the largest tile that the tokens fill, or the smallest.
std::uint32_t choose_tile(const std::vector<std::uint32_t>& tiles, std::uint32_t wanted, std::int64_t tokens) {
  std::uint32_t chosen = tiles.empty() ? wanted : tiles.front();
  for (const std::uint32_t tile : tiles) {
    if (tile == wanted) return wanted;
    if (tile <= tokens) chosen = tile;
  }
  return chosen;
}

}  // namespace

Launcher::Launcher(const Archive& archive, const Attributes& attributes, std::uint32_t activation, std::int64_t hidden,
                   std::int64_t tokens, std::uint32_t tile_tokens)
    : shape_(MoeShape::of(attributes, hidden)),
      top_k_(attributes.top_k),
      norm_topk_prob_(attributes.norm_topk_prob),
      tokens_(tokens) {
  const cuda::Driver& driver = cuda::Driver::instance();
  const auto sm = static_cast<std::uint32_t>(10 * driver.device_attribute(cuda::kComputeCapabilityMajor) +
                                             driver.device_attribute(cuda::kComputeCapabilityMinor));
  const Variant variant{activation, static_cast<std::uint32_t>(attributes.bits),
                        static_cast<std::uint32_t>(attributes.block_size), static_cast<std::uint32_t>(shape_.experts)};
  Tiles tiles{};
  const auto rows = [&](Kernel kernel, std::uint32_t tile) {
    return static_cast<std::int64_t>(load(archive, sm, variant, kernel, tile).tile_rows);
  };
  rows(Kernel::kRoute, 0);
  if (tokens <= kDecodeTokens) {
    tiles.gate_up_rows = rows(Kernel::kGateUpDecode, 0);
    tiles.down_rows = rows(Kernel::kDownDecode, 0);
    tiles.elements = rows(Kernel::kSumParts, 0);
    plan_ = plan_decode(shape_, tokens, tiles, driver.device_attribute(cuda::kMultiprocessorCount));
  } else {
    tile_tokens = choose_tile(archive.prefill_tiles(variant, sm), tile_tokens, tokens);
    tiles.tokens = tile_tokens;
    rows(Kernel::kSort, 0);
    tiles.gate_up_rows = rows(Kernel::kGateUpPrefill, tile_tokens);
    tiles.down_rows = rows(Kernel::kDownPrefill, tile_tokens);
    plan_ = plan_prefill(shape_, tokens, tiles);
  }
}

const KernelRecord& Launcher::load(const Archive& archive, std::uint32_t sm, const Variant& variant, Kernel kernel,
                                   std::uint32_t tile_tokens) {
  const KernelRecord* const record = archive.find(kernel_name(kernel), sm, variant, tile_tokens);
  if (!record) refuse_device(archive, sm, kernel);
  kernels_[static_cast<std::size_t>(kernel)] = {record, loaded_function(*record)};
  return *record;
}

void Launcher::launch(const CallBuffers& buffers, cuda::Stream stream) const {
  for (std::size_t i = 0; i < kMaxInputs; ++i)
    if (reinterpret_cast<std::uintptr_t>(buffers.inputs[i]) % kPointerAlignment != 0)
      throw std::runtime_error(std::string(input_name(i)) + " is not aligned to 16 bytes.");
  if (reinterpret_cast<std::uintptr_t>(buffers.y) % kPointerAlignment != 0)
    throw std::runtime_error("y is not aligned to 16 bytes.");
  const auto* const workspace = static_cast<const char*>(buffers.workspace);
  const WorkspaceLayout& layout = plan_.workspace;
  const Call call{shape_, tokens_, top_k_, norm_topk_prob_, plan_.splits, buffers, workspace + layout.group_weights,
                  workspace + layout.inner, workspace + layout.parts, workspace + layout.expert_tokens,
                  workspace + layout.expert_counts};
  for (const Launch& launch : plan_.launches) {
    const auto& [record, function] = kernels_[static_cast<std::size_t>(launch.kernel)];
    Parameters parameters;
    add_parameters(launch.kernel, call, parameters);
    if (parameters.count() != record->parameters)
      throw std::runtime_error("kernel " + record->kernel + " takes " + std::to_string(record->parameters) +
                               " parameters, and this library gives it " + std::to_string(parameters.count()) + ".");
    cuda::Driver::instance().launch(function, launch.grid_x, launch.grid_y, kWarp * record->num_warps,
                                    record->shared_bytes, stream, parameters.pointers());
  }
}

}  // namespace echovlm
