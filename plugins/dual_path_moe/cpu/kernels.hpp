// What one instruction set offers: the products and loops that the operators are made of, as one table of functions.
#pragma once

#include <cstddef>
#include <cstdint>

namespace echovlm {

enum class FloatType { kFloat32, kFloat16, kBFloat16 };

// Rows of a block-wise quantized matrix, narrowed to some of its columns; packing as in README.md.
struct BlockWeights {
  const std::uint8_t* values;  // the first wanted byte of the first wanted row
  std::size_t row_bytes;       // from a row to the next
  const void* scales;          // float, or IEEE half where half_scales
  std::size_t scale_stride;    // scales from a row to the next
  bool half_scales;
  int bits;           // 4 or 8
  std::size_t block;  // values of K that share a scale: 16, 32, 64 or 128
  std::size_t rows;
  std::size_t k;  // columns, a multiple of block
  // Where the product after this one begins, its rows as far apart: its memory is asked for while the last of these are read.
  const std::uint8_t* next_values;
  const void* next_scales;
};

// Rows of a floating matrix, narrowed to some of its columns.
struct FloatWeights {
  const void* values;
  FloatType type;
  std::size_t stride;  // elements from a row to the next
  std::size_t rows;
  std::size_t k;
};

// Which rows of the activations take part, and where their results go: token i reads row tokens[i] and is added to
// accumulator row tokens[i] - first (by_token) or i.
struct TokenList {
  const std::uint32_t* tokens;
  std::size_t count;
  bool by_token;
  std::uint32_t first;
};

// Activations as int8, one scale and one sum for each block of K, narrowed to the same columns as the weights. For 4-bit
// weights every eight values are stored as their four even ones, then their four odd ones: the order in which a 32-bit
// word of packed weights gives its low and its high nibbles.
struct QuantizedTokens {
  const std::int8_t* values;
  std::size_t stride;
  const float* scales;
  const std::int32_t* sums;
  std::size_t scale_stride;
};

struct FloatTokens {
  const float* values;
  std::size_t stride;
};

// Results, float [tokens][stride]; a product may touch columns up to the next multiple of kAccumulatorPadding.
struct Accumulator {
  float* values;
  std::size_t stride;
};

constexpr std::size_t kAccumulatorPadding = 64;
constexpr std::size_t kScratchBytes = 128 * 1024;  // what a product may use: an unpacked panel and its scales
constexpr std::size_t kRowSlack = 64;             // readable bytes after the last row of quantized activations

struct Kernels {
  const char* name;

  // accumulator[token][row] += sum over k of weight[row][k] * activation[token][k]
  void (*block_product)(const BlockWeights&, const QuantizedTokens&, const TokenList&, const Accumulator&,
                        std::uint8_t* scratch);
  void (*float_product)(const FloatWeights&, const FloatTokens&, const TokenList&, const Accumulator&);

  // q = round to even(x * 127 / max|x|) by block, scale = max|x| / 127 * weight. A block that holds NaN or infinity gets
  // scale NaN, so that every result of its token does.
  void (*quantize)(const float* x, std::size_t k, std::size_t block, int bits, float weight, std::int8_t* q, float* scales,
                   std::int32_t* sums);

  // gate = silu(gate) * up * weight
  void (*swiglu)(float* gate, const float* up, std::size_t count, float weight);

  // Runs the product of 8-bit weights alone, `rounds` times; returns the operations done (a multiply-add is two).
  double (*peak)(std::size_t rounds);

  // Reads memory as fast as the instruction set can; returns a checksum that keeps the reads alive.
  std::uint64_t (*read)(const std::uint8_t* data, std::size_t bytes);
};

}  // namespace echovlm
