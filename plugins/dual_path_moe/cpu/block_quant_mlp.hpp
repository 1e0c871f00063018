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

// How the weights are stored: those that x is multiplied by, and down's, whose blocks lie along the inner values. Bits are 4 or 8 in both.
struct BlockQuantMLPPacking {
  Packing x, inner;

  // Throws std::invalid_argument for a packing that README.md does not specify.
  void validate() const;
  // Throws std::invalid_argument if a width is not a multiple of its block.
  void validate_widths(std::size_t width, std::size_t inner_width) const;
};

// Writes y [tokens, width]. Throws std::invalid_argument if a width is not a multiple of its block.
void block_quant_mlp(const Kernels& kernels, const BlockQuantMLPPacking& packing, const BlockQuantMLPInputs& inputs, float* y,
                     const Threads& threads, Workspace& workspace);

}  // namespace echovlm
