// echovlm::SelfAttention: attention of patches to all patches of their window; see ../README.md.
#pragma once

#include "../../dual_path_moe/cpu/kernels.hpp"
#include "../../dual_path_moe/cpu/workspace.hpp"

namespace echovlm {

struct SelfAttentionInputs {
  std::size_t rows, heads, dim;
  bool in_bytes;             // where the kernels can; otherwise in float32
  const float* qkv;          // [rows, 3 heads dim]
  const float *cos, *sin;    // [rows, dim / 2]
  const std::int64_t* offsets;  // [windows + 1], from 0 to rows
  std::size_t windows;
};

// Writes y [rows, heads dim]. Throws std::invalid_argument for windows that README.md refuses.
void self_attention(const Kernels& kernels, const SelfAttentionInputs& inputs, float* y, const Threads& threads, Workspace& workspace);

}  // namespace echovlm
