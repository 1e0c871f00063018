#include "launcher.hpp"

namespace echovlm {
namespace {

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
      to.add_all(call.inner, down, down_scale, call.group_weights, call.parts, y);
      add_sizes();
      to.add(call.splits);
      break;
  }
  to.add_scratch();
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
  const std::uint32_t sm = current_sm();
  const Variant variant{activation, static_cast<std::uint32_t>(attributes.bits),
                        static_cast<std::uint32_t>(attributes.block_size), static_cast<std::uint32_t>(shape_.experts)};
  Tiles tiles{};
  const auto rows = [&](Kernel kernel, std::uint32_t tile) {
    LoadedKernel& loaded = kernels_[static_cast<std::size_t>(kernel)];
    loaded = load_kernel(archive, sm, variant, kernel_name(kernel), tile);
    return static_cast<std::int64_t>(loaded.record->tile_rows);
  };
  const std::int64_t multiprocessors = cuda::Driver::instance().device_attribute(cuda::kMultiprocessorCount);
  rows(Kernel::kRoute, 0);
  tiles.elements = rows(Kernel::kSumParts, 0);
  if (tokens <= kDecodeTokens) {
    tiles.gate_up_rows = rows(Kernel::kGateUpDecode, 0);
    tiles.down_rows = rows(Kernel::kDownDecode, 0);
    plan_ = plan_decode(shape_, tokens, tiles, multiprocessors);
  } else {
    tile_tokens = choose_tile(archive.prefill_tiles(variant, sm), tile_tokens, tokens);
    tiles.tokens = tile_tokens;
    rows(Kernel::kSort, 0);
    tiles.gate_up_rows = rows(Kernel::kGateUpPrefill, tile_tokens);
    tiles.down_rows = rows(Kernel::kDownPrefill, tile_tokens);
    plan_ = plan_prefill(shape_, tokens, tiles, multiprocessors);
  }
}

void Launcher::launch(const CallBuffers& buffers, cuda::Stream stream) const {
  for (std::size_t i = 0; i < kMaxInputs; ++i) check_aligned(buffers.inputs[i], input_name(i));
  check_aligned(buffers.y, "y");
  const auto* const workspace = static_cast<const char*>(buffers.workspace);
  const WorkspaceLayout& layout = plan_.workspace;
  const Call call{shape_, tokens_, top_k_, norm_topk_prob_, plan_.splits, buffers, workspace + layout.group_weights,
                  workspace + layout.inner, workspace + layout.parts, workspace + layout.expert_tokens,
                  workspace + layout.expert_counts};
  for (const Launch& launch : plan_.launches) {
    Parameters parameters;
    add_parameters(launch.kernel, call, parameters);
    launch_kernel(kernels_[static_cast<std::size_t>(launch.kernel)], {launch.grid_x, launch.grid_y}, parameters, stream);
  }
}

}  // namespace echovlm
