// Selects the rows and columns of matrices and activations for a product, for quantized and floating-point weights.
#include "matrix.hpp"

#include <stdexcept>

namespace echovlm {

void Packing::validate() const {
  if (bits != 0 && bits != 4 && bits != 8)
    throw std::invalid_argument("bits is " + std::to_string(bits) + ", but weights have 0 (floating), 4 or 8.");
  if (bits != 0 && block != 16 && block != 32 && block != 64 && block != 128)
    throw std::invalid_argument("block_size is " + std::to_string(block) + ", but a block has 16, 32, 64 or 128 values.");
}

void Packing::validate_width(const std::string& what, std::size_t width) const {
  if (bits != 0 && width % block != 0)
    throw std::invalid_argument(what + " " + std::to_string(width) + " is not a multiple of block_size " +
                                std::to_string(block) + ": quantize with a smaller block.");
}

Activations reserve_activations(const Packing& packing, std::size_t tokens, std::size_t width, Buffer& values,
                                Buffer& scales, Buffer& sums) {
  Activations made;
  if (packing.bits == 0) {
    made.floats = {values.reserve<float>(tokens * width), width};
    return made;
  }
  // Rows whose stride is a multiple of 4096 bytes would all map to the same few cache sets.
  const std::size_t stride = width % 4096 ? width : width + 64;
  const std::size_t blocks = width / packing.block;
  made.quantized = {values.reserve<std::int8_t>(tokens * stride + kRowSlack), stride,
                    scales.reserve<float>(tokens * blocks), sums.reserve<std::int32_t>(tokens * blocks), blocks};
  return made;
}

void write_activations(const Kernels& kernels, const Packing& packing, const float* from, std::size_t token,
                       std::size_t column, std::size_t count, float weight, const Activations& to) {
  const QuantizedTokens& q = to.quantized;
  const std::size_t block = token * q.scale_stride + column / packing.block;
  kernels.quantize(from, count, packing.block, packing.bits, weight,
                   const_cast<std::int8_t*>(q.values) + token * q.stride + column, const_cast<float*>(q.scales) + block,
                   const_cast<std::int32_t*>(q.sums) + block);
}

void multiply(const Kernels& kernels, const Packing& packing, const Part& part, const Activations& x, const TokenList& list,
              const Accumulator& accumulator, const Part& next, std::uint8_t* scratch) {
  if (list.count == 0) return;
  const Matrix& matrix = part.matrix;
  const auto at = [](const void* all, std::size_t bytes) { return static_cast<const std::uint8_t*>(all) + bytes; };
  if (packing.bits == 0) {
    const std::size_t size = matrix.type == FloatType::kFloat32 ? 4 : 2;
    const auto* first = at(matrix.values, (part.row * matrix.columns + part.column) * size);
    kernels.float_product({first, matrix.type, matrix.columns, part.rows, part.columns},
                          {x.floats.values + part.column, x.floats.stride}, list, accumulator);
    return;
  }
  const std::size_t row_bytes = matrix.columns * packing.bits / 8, blocks = matrix.columns / packing.block;
  const auto values = [&](const Part& p) { return at(p.matrix.values, p.row * row_bytes + p.column * packing.bits / 8); };
  const auto scales = [&](const Part& p) {
    return at(p.matrix.scales, (p.row * blocks + p.column / packing.block) * (matrix.half_scales ? 2 : 4));
  };
  const BlockWeights weights{values(part), row_bytes, scales(part), blocks, matrix.half_scales, packing.bits, packing.block,
                             part.rows, part.columns, values(next), scales(next)};
  const std::size_t block = part.column / packing.block;
  const QuantizedTokens& q = x.quantized;
  kernels.block_product(weights, {q.values + part.column, q.stride, q.scales + block, q.sums + block, q.scale_stride}, list,
                        accumulator, scratch);
}

}  // namespace echovlm
