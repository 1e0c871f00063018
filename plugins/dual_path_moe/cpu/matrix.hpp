// A weight matrix and the activations it is multiplied by, for quantized and floating-point weights.
#pragma once

#include <string>

#include "kernels.hpp"
#include "workspace.hpp"

namespace echovlm {

// How weights are stored: `bits` 0 (floating point), 4 or 8; `block` values of K share a scale.
struct Packing {
  int bits = 0;
  std::size_t block = 0;

  // Throws std::invalid_argument for a packing that README.md does not specify.
  void validate() const;
  // Throws std::invalid_argument, naming `what`, if `width` is not a multiple of the block.
  void validate_width(const std::string& what, std::size_t width) const;
};

// [N, K], K contiguous; scales [N, K / block] unless bits is 0.
struct Matrix {
  const void* values = nullptr;
  FloatType type = FloatType::kFloat32;
  const void* scales = nullptr;
  bool half_scales = false;
  std::size_t columns = 0;
};

// The rows and columns of a matrix that a product uses.
struct Part {
  const Matrix& matrix;
  std::size_t row, rows, column, columns;
};

// Activations [tokens, width] in the format that the product needs: block-wise int8, or float.
struct Activations {
  QuantizedTokens quantized{};
  FloatTokens floats{};
};

// Reserves memory for activations in three buffers of a workspace, for `write_activations`; quantized unless `packing.bits` is 0.
Activations reserve_activations(const Packing& packing, std::size_t tokens, std::size_t width, Buffer& values,
                                Buffer& scales, Buffer& sums);

// Quantizes `count` values of one token from `column` on; the scales are multiplied by `weight`.
void write_activations(const Kernels& kernels, const Packing& packing, const float* from, std::size_t token,
                       std::size_t column, std::size_t count, float weight, const Activations& to);

// accumulator[token][row - part.row] += product of the part with the activations of the listed tokens. `next` is the part that will be
// multiplied afterwards, from a matrix with rows of the same length, so that it can be prefetched; if there is none, pass `part` itself.
void multiply(const Kernels& kernels, const Packing& packing, const Part& part, const Activations& x, const TokenList& list,
              const Accumulator& accumulator, const Part& next, std::uint8_t* scratch);

}  // namespace echovlm
