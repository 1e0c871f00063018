// The operators as plain C functions, without ONNX Runtime: for tests, sanitizers and benchmarks.
#pragma once

#include <cstddef>
#include <cstdint>

#define ECHOVLM_EXPORT __attribute__((visibility("default")))

extern "C" {

// A weight: type 0 float32, 1 float16, 2 bfloat16 (with bits 0); scale_type 0 float32, 1 float16 (otherwise).
struct EchovlmMatrix {
  const void* values;
  const void* scales;
  std::int32_t type, scale_type;
};

struct EchovlmDualPathMoE {
  const std::int64_t* group_widths;
  std::int64_t groups, top_k, norm_topk_prob, bits, block_size;
  std::int64_t tokens, hidden, threads;
  const float *x, *router, *shared_gate, *coefficient, *coefficient_bias;
  EchovlmMatrix gate, up, down;
  float* y;
};

struct EchovlmBlockQuantLinear {
  std::int64_t bits, block_size, tokens, columns, rows, threads;
  const float *x, *bias;
  EchovlmMatrix weight;
  float* y;
};

// `gate.values` null: down(quick_gelu(up x)); otherwise down(silu(gate x) * up x). Any bias may be null.
struct EchovlmBlockQuantMLP {
  std::int64_t bits, block_size, inner_block_size, tokens, width, inner, threads;
  const float *x, *up_bias, *down_bias, *gate_bias;
  EchovlmMatrix up, down, gate;
  float* y;
};

// Caches of type 0 float32, 1 float16, 2 int8 with its scales; see ../../attention/README.md.
struct EchovlmCachedAttention {
  std::int64_t rows, heads, kv_heads, dim, cache_type, slot_count, capacity, threads;
  const float *qkv, *cos, *sin;
  const std::int64_t *slots, *positions;
  void *keys, *values;
  const float *key_scales, *value_scales;
  float* y;
};

struct EchovlmSelfAttention {
  std::int64_t rows, heads, dim, bits, windows, threads;
  const float *qkv, *cos, *sin;
  const std::int64_t* offsets;
  float* y;
};

// Codes [rows, columns], scales [rows, columns / block_size] as float32 that are values of scale_type: 0 float32, 1 float16, 2 bfloat16.
struct EchovlmRoundBlocks {
  std::int64_t bits, block_size, rows, columns;
  const float *weight, *importance;  // [rows, columns]; [columns] or null
  const float* divisors;
  std::int64_t candidates, scale_type;
  std::int8_t* codes;
  float* scales;
};

// All return 0, or 1 with a message in `error`.
ECHOVLM_EXPORT int echovlm_dual_path_moe(const EchovlmDualPathMoE* call, char* error, std::size_t error_size);
ECHOVLM_EXPORT int echovlm_block_quant_linear(const EchovlmBlockQuantLinear* call, char* error, std::size_t error_size);
ECHOVLM_EXPORT int echovlm_block_quant_mlp(const EchovlmBlockQuantMLP* call, char* error, std::size_t error_size);
ECHOVLM_EXPORT int echovlm_cached_attention(const EchovlmCachedAttention* call, char* error, std::size_t error_size);
ECHOVLM_EXPORT int echovlm_self_attention(const EchovlmSelfAttention* call, char* error, std::size_t error_size);
ECHOVLM_EXPORT int echovlm_round_blocks(const EchovlmRoundBlocks* call, char* error, std::size_t error_size);

// Returns the names of the kernels that this computer can run, best first, separated by commas.
ECHOVLM_EXPORT const char* echovlm_available_kernels();
// The kernels in use.
ECHOVLM_EXPORT const char* echovlm_kernel();
// Use the kernels of this name from now on; 0, or 1 if this computer cannot run them.
ECHOVLM_EXPORT int echovlm_set_kernel(const char* name);

// Returns the read bandwidth of `threads` threads over `data` in bytes a second, the best of `runs`.
ECHOVLM_EXPORT double echovlm_read_bandwidth(const void* data, std::size_t bytes, std::int64_t threads, std::int64_t runs);
// Returns int8 operations a second (a multiply-add is two) of the dot-product instructions that 4-bit kernels use, without loading
// weights from memory; the best of `runs`.
ECHOVLM_EXPORT double echovlm_int8_peak(std::int64_t threads, std::int64_t runs);
}
