// Plain C functions: the archive and the planner, which need no GPU, and the launch itself, for programs without TensorRT and
// ONNX Runtime, and for tests.
#pragma once

#include <cstddef>
#include <cstdint>

#define ECHOVLM_EXPORT __attribute__((visibility("default")))

extern "C" {

struct EchovlmPlanRequest {
  std::int64_t tokens, hidden, dense, shared, expert, experts;
  std::int64_t decode;  // 1 for the decode kernels, 0 for the prefill kernels
  std::int64_t gate_up_rows, down_rows, tile_tokens, elements;
  std::int64_t multiprocessors;
};

struct EchovlmPlan {
  std::int64_t launches;         // four or five
  const char* kernels[5];        // as the archive names them
  std::int64_t grids[5][2];      // gridDim.x and .y
  std::int64_t splits;
  std::int64_t group_weights, inner, parts, expert_tokens, expert_counts;  // offsets in the workspace; 0 if there is none
  std::int64_t workspace_bytes;
};

// Returns a plan without launches if the workspace would be larger than any device's memory.
ECHOVLM_EXPORT void echovlm_plan_launches(const EchovlmPlanRequest* request, EchovlmPlan* plan);

// Returns the bytes of a workspace for any number of tokens up to `tokens`; reads only the request's shape. Returns -1 if they would
// exceed any device's memory.
ECHOVLM_EXPORT std::int64_t echovlm_largest_workspace(const EchovlmPlanRequest* request);

struct EchovlmKernelQuery {
  const char* kernel;
  std::int64_t sm, activation, bits, block_size, experts, tile_tokens;
};

struct EchovlmKernel {
  char entry[64];
  std::int64_t sm, tile_tokens, tile_rows, num_warps, shared_bytes, parameters, cubin_offset, cubin_bytes;
};

// Finds the record that would be launched. Returns 0; 1 if there is none; 2, with a message in `error`, if `archive` is not an archive.
ECHOVLM_EXPORT int echovlm_find_kernel(const void* archive, std::size_t bytes, const EchovlmKernelQuery* query,
                                       EchovlmKernel* found, char* error, std::size_t error_size);

// Returns the archive in this library, or null if it was built without one.
ECHOVLM_EXPORT const void* echovlm_embedded_archive(std::size_t* bytes);

// Returns 1 if the archive in this library has kernels for compute capability `sm` / 10, or with `sm` 0 for any; else 0.
ECHOVLM_EXPORT int echovlm_has_kernels(std::int64_t sm);

struct EchovlmCall {
  const std::int32_t* group_widths;  // of dense, shared, expert 0, ...
  std::int64_t groups, top_k, norm_topk_prob, bits, block_size;
  std::int64_t activation;  // 0 float16, 1 bfloat16
  std::int64_t hidden, tokens;
  std::int64_t tile_tokens;  // of the prefill kernels; 0: the library chooses
  const void* inputs[11];    // device pointers in README.md's order; scales are null if bits is 0
  void* y;
  void* workspace;  // of echovlm_largest_workspace's size for these tokens or more
  void* stream;     // CUstream
};

// Queues one call with this library's own kernels in the calling thread's CUDA context, without waiting. Returns 0, or 2 with a
// message in `error` if it failed, possibly after some kernels were queued.
ECHOVLM_EXPORT int echovlm_launch(const EchovlmCall* call, char* error, std::size_t error_size);

struct EchovlmLinearCall {
  std::int64_t bits, block_size, tokens, inputs, outputs;
  const void* tensors[3];  // device pointers: x, weight, scale
  void* y;
  void* stream;  // CUstream
};

// Queues one BlockQuantLinear, likewise.
ECHOVLM_EXPORT int echovlm_launch_linear(const EchovlmLinearCall* call, char* error, std::size_t error_size);
}
