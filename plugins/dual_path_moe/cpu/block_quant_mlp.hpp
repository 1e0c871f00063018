// BlockQuantMLP: the MLP of a transformer block as one operator (README.md), over the kernels of BlockQuantLinear.
#pragma once

#include "block_quant_linear.hpp"

namespace echovlm {

struct BlockQuantMLPInputs {
  const float* x;  // [tokens, width]
  std::size_t tokens, width, inner;
  Linear up;    // [inner, width]
  Linear down;  // [width, inner]
  Linear gate;  // [inner, width]; without it `weight.values` is null
};

// Writes y [tokens, width]; `packing.bits` is 4 or 8. Throws std::invalid_argument if a width is not a multiple of the block.
void block_quant_mlp(const Kernels& kernels, const Packing& packing, const BlockQuantMLPInputs& inputs, float* y,
                     const Threads& threads, Workspace& workspace);

}  // namespace echovlm
