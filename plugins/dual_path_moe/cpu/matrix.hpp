// A weight matrix and the activations that meet it, in whichever way the weights are stored.
#pragma once

#include <string>

#include "kernels.hpp"
#include "workspace.hpp"

namespace echovlm {

// How weights are stored: `bits` 0 (floating), 4 or 8; `block` values of K share a scale.
struct Packing {
  int bits = 0;
  std::size_t block = 0;

  // Throws std::invalid_argument for a packing that README.md does not have.
  void validate() const;
  // Throws std::invalid_argument, naming `what`, where `width` is not a multiple of the block.
  void validate_width(const std::string& what, std::size_t width) const;
};

// [N, K], K contiguous; scales [N, K / block] where bits is not 0.
struct Matrix {
  const void* values = nullptr;
  FloatType type = FloatType::kFloat32;
  const void* scales = nullptr;
  bool half_scales = false;
  std::size_t columns = 0;
};

// Which rows and columns of a matrix take part in a product.
struct Part {
  const Matrix& matrix;
  std::size_t row, rows, column, columns;
};

// Activations [tokens, width] as the weights want them: int8 by block, or float.
struct Activations {
  QuantizedTokens quantized{};
  FloatTokens floats{};
};

// Activations in three buffers of a workspace, for `write_activations`; quantized unless `packing.bits` is 0.
Activations reserve_activations(const Packing& packing, std::size_t tokens, std::size_t width, Buffer& values,
                                Buffer& scales, Buffer& sums);

// Quantizes `count` values of one token from `column` on; `weight` multiplies what they stand for.
void write_activations(const Kernels& kernels, const Packing& packing, const float* from, std::size_t token,
                       std::size_t column, std::size_t count, float weight, const Activations& to);

// accumulator[token][row - part.row] += the part's product with the activations of the listed tokens. `next` is what is multiplied
// after it, its rows as long as these: its memory is asked for in time. Where there is nothing, the part itself.
void multiply(const Kernels& kernels, const Packing& packing, const Part& part, const Activations& x, const TokenList& list,
              const Accumulator& accumulator, const Part& next, std::uint8_t* scratch);

}  // namespace echovlm
