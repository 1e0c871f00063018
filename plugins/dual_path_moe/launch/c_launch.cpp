#include "c_launch.hpp"

#include <algorithm>
#include <exception>

#include "archive.hpp"
#include "embedded_archive.hpp"
#include "launcher.hpp"
#include "linear_launcher.hpp"
#include "planner.hpp"

namespace {

using namespace echovlm;

MoeShape shape_of(const EchovlmPlanRequest& request) {
  return {request.hidden, request.dense, request.shared, request.expert, request.experts};
}

void copy_text(const std::string& text, char* to, std::size_t size) {
  if (size == 0) return;
  const std::size_t length = std::min(text.size(), size - 1);
  std::copy_n(text.begin(), length, to);
  to[length] = '\0';
}

// Returns 0; 2 if `work` throws, with its message in `error`.
template <class Work>
int reported(char* error, std::size_t error_size, Work&& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& thrown) {
    copy_text(thrown.what(), error, error_size);
    return 2;
  }
}

}  // namespace

void echovlm_plan_launches(const EchovlmPlanRequest* request, EchovlmPlan* plan) try {
  *plan = {};
  const Tiles tiles{request->gate_up_rows, request->down_rows, request->tile_tokens, request->elements};
  const LaunchPlan made = request->decode
                              ? plan_decode(shape_of(*request), request->tokens, tiles, request->multiprocessors)
                              : plan_prefill(shape_of(*request), request->tokens, tiles, request->multiprocessors);
  for (const Launch& launch : made.launches) {
    plan->kernels[plan->launches] = kernel_name(launch.kernel);
    plan->grids[plan->launches][0] = launch.grid_x;
    plan->grids[plan->launches][1] = launch.grid_y;
    ++plan->launches;
  }
  plan->splits = made.splits;
  const auto bytes = [](std::size_t offset) { return static_cast<std::int64_t>(offset); };
  plan->group_weights = bytes(made.workspace.group_weights);
  plan->inner = bytes(made.workspace.inner);
  plan->parts = bytes(made.workspace.parts);
  plan->expert_tokens = bytes(made.workspace.expert_tokens);
  plan->expert_counts = bytes(made.workspace.expert_counts);
  plan->workspace_bytes = bytes(made.workspace.bytes);
} catch (const std::exception&) {  // none: there are no launches
}

std::int64_t echovlm_largest_workspace(const EchovlmPlanRequest* request) try {
  return static_cast<std::int64_t>(largest_workspace(shape_of(*request), request->tokens));
} catch (const std::exception&) {
  return -1;
}

int echovlm_find_kernel(const void* archive, std::size_t bytes, const EchovlmKernelQuery* query, EchovlmKernel* found,
                        char* error, std::size_t error_size) {
  try {
    const Archive opened(static_cast<const std::uint8_t*>(archive), bytes);
    const Variant variant{static_cast<std::uint32_t>(query->activation), static_cast<std::uint32_t>(query->bits),
                          static_cast<std::uint32_t>(query->block_size), static_cast<std::uint32_t>(query->experts)};
    const KernelRecord* const record = opened.find(query->kernel, static_cast<std::uint32_t>(query->sm), variant,
                                                   static_cast<std::uint32_t>(query->tile_tokens));
    if (!record) return 1;
    *found = {"",
              record->sm,
              record->tile_tokens,
              record->tile_rows,
              record->num_warps,
              record->shared_bytes,
              record->parameters,
              record->cubin - static_cast<const std::uint8_t*>(archive),
              static_cast<std::int64_t>(record->cubin_bytes)};
    copy_text(record->entry, found->entry, sizeof found->entry);
    return 0;
  } catch (const std::exception& thrown) {
    copy_text(thrown.what(), error, error_size);
    return 2;
  }
}

const void* echovlm_embedded_archive(std::size_t* bytes) {
  const ArchiveBytes embedded = embedded_archive_bytes();
  *bytes = embedded.size;
  return embedded.data;
}

int echovlm_has_kernels(std::int64_t sm) try {
  const Archive& archive = embedded_archive();
  return sm == 0 || archive.architecture_for(static_cast<std::uint32_t>(sm)) != 0;
} catch (const std::exception&) {
  return 0;
}

int echovlm_launch(const EchovlmCall* call, char* error, std::size_t error_size) {
  return reported(error, error_size, [&] {
    const Attributes attributes{{call->group_widths, call->group_widths + call->groups},
                                static_cast<std::int32_t>(call->top_k),
                                static_cast<std::int32_t>(call->norm_topk_prob),
                                static_cast<std::int32_t>(call->bits),
                                static_cast<std::int32_t>(call->block_size)};
    attributes.validate();
    const Launcher launcher(embedded_archive(), attributes, static_cast<std::uint32_t>(call->activation), call->hidden,
                            call->tokens, static_cast<std::uint32_t>(call->tile_tokens));
    CallBuffers buffers;
    std::copy_n(call->inputs, kMaxInputs, buffers.inputs.begin());
    buffers.y = call->y;
    buffers.workspace = call->workspace;
    launcher.launch(buffers, static_cast<cuda::Stream>(call->stream));
  });
}

int echovlm_launch_linear(const EchovlmLinearCall* call, char* error, std::size_t error_size) {
  return reported(error, error_size, [&] {
    const LinearAttributes attributes{static_cast<std::int32_t>(call->bits), static_cast<std::int32_t>(call->block_size)};
    attributes.validate();
    LinearLauncher(embedded_archive(), attributes, call->tokens, call->inputs, call->outputs)
        .launch(call->tensors, call->y, static_cast<cuda::Stream>(call->stream));
  });
}
