// BlockQuantLinear: y = x W^T + b with block-wise quantized weights, using the same kernels as DualPathMoE.
#pragma once

#include "matrix.hpp"

namespace echovlm {

struct BlockQuantLinearInputs {
  const float* x;  // [tokens, weight.columns]
  std::size_t tokens;
  Matrix weight;  // [rows, columns]
  std::size_t rows;
  const float* bias;  // [rows] or nullptr
};

// Writes y [tokens, rows]; `packing.bits` is 4 or 8. Throws std::invalid_argument if the columns are not a multiple of the block.
void block_quant_linear(const Kernels& kernels, const Packing& packing, const BlockQuantLinearInputs& inputs, float* y,
                        const Threads& threads, Workspace& workspace);

}  // namespace echovlm
