// echovlm::CachedAttention: grouped-query attention of packed rows over caches that it writes; see ../README.md.
#pragma once

#include "../../dual_path_moe/cpu/kernels.hpp"
#include "../../dual_path_moe/cpu/workspace.hpp"

namespace echovlm {

struct CachedAttentionInputs {
  std::size_t rows, heads, kv_heads, dim;
  const float* qkv;            // [rows, (heads + 2 kv_heads) dim]
  const float *cos, *sin;      // [rows, dim / 2]
  const std::int64_t *slots, *positions;  // [rows]
  void *keys, *values;         // [slot_count, kv_heads, capacity / 16, dim, 16] and [slot_count, kv_heads, capacity, dim]
  CacheType type;
  std::size_t slot_count, capacity;
  const float *key_scales, *value_scales;  // [kv_heads, dim] where the type is int8
};

// Writes y [rows, heads dim] and the rows' keys and values. Throws std::invalid_argument for rows that README.md refuses.
void cached_attention(const Kernels& kernels, const CachedAttentionInputs& inputs, float* y, const Threads& threads,
                      Workspace& workspace);

}  // namespace echovlm
