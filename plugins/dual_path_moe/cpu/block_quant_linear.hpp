// BlockQuantLinear: y = x W^T + b with block-wise quantized weights, using the same kernels as DualPathMoE.
#pragma once

#include "matrix.hpp"

namespace echovlm {

// A quantized weight [rows, columns], and its bias [rows] or null.
struct Linear {
  Matrix weight;
  const float* bias = nullptr;
};

struct BlockQuantLinearInputs {
  const float* x;  // [tokens, linear.weight.columns]
  std::size_t tokens;
  Linear linear;
  std::size_t rows;
};

// Writes y [tokens, rows]; `packing.bits` is 4 or 8. Throws std::invalid_argument if the columns are not a multiple of the block.
void block_quant_linear(const Kernels& kernels, const Packing& packing, const BlockQuantLinearInputs& inputs, float* y,
                        const Threads& threads, Workspace& workspace);

// Its two phases. Quantizes x [tokens, width].
void quantize_tokens(const Kernels& kernels, const Packing& packing, const float* x, std::size_t tokens, std::size_t width,
                     const Activations& to, const Threads& threads);

// Multiplies the first `tokens` tokens of x, and writes y [tokens, rows].
void multiply_tokens(const Kernels& kernels, const Packing& packing, const Linear& linear, std::size_t rows, const Activations& x,
                     std::size_t tokens, float* y, const Threads& threads, Workspace& workspace);

// Begins the sums of `count` tokens by the bias of a product's `rows` rows, or by zeros; as many columns as the product may write.
void begin_sums(const float* bias, std::size_t rows, std::size_t count, const Accumulator& sums);

}  // namespace echovlm
