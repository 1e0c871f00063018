// The table of functions that each instruction set provides: the products and loops that the operators use.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../../attention/cpu/attention_kernels.hpp"

namespace echovlm {

enum class FloatType { kFloat32, kFloat16, kBFloat16 };

// Some rows and columns of a block-wise quantized matrix; packing as in README.md.
struct BlockWeights {
  const std::uint8_t* values;  // first byte of the first row
  std::size_t row_bytes;       // stride between rows, bytes
  const void* scales;          // float, or IEEE half if half_scales
  std::size_t scale_stride;    // stride between rows, scales
  bool half_scales;
  int bits;           // 4 or 8
  std::size_t block;  // values of K that share a scale: 16, 32, 64 or 128
  std::size_t rows;
  std::size_t k;  // columns, a multiple of block
  // Start of the next product's weights, with the same strides: prefetched while the last of these rows are read.
  const std::uint8_t* next_values;
  const void* next_scales;
};

// Some rows and columns of a floating-point matrix.
struct FloatWeights {
  const void* values;
  FloatType type;
  std::size_t stride;  // between rows, elements
  std::size_t rows;
  std::size_t k;
};

// Which rows of the activations are multiplied, and where the results go: token i reads row tokens[i] and is added to
// accumulator row tokens[i] - first (by_token) or i.
struct TokenList {
  const std::uint32_t* tokens;
  std::size_t count;
  bool by_token;
  std::uint32_t first;
};

// Activations as int8 with one scale and one sum per block of K, for the same columns as the weights. For 4-bit weights each eight
// values are stored even ones first, which is the order of the low and high nibbles in a 32-bit word of packed weights:
//
//   weights, 4 bytes:       | k, k+1 | k+2, k+3 | k+4, k+5 | k+6, k+7 |      each byte: low nibble, high nibble
//   low nibbles:            |  k     |  k+2     |  k+4     |  k+6     |
//   high nibbles:           |  k+1   |  k+3     |  k+5     |  k+7     |
//   activations, 8 bytes:   |  k     |  k+2     |  k+4     |  k+6     | k+1 | k+3 | k+5 | k+7 |
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

// Results, float [tokens][stride]; a product may write columns up to the next multiple of kAccumulatorPadding.
struct Accumulator {
  float* values;
  std::size_t stride;
};

// How a weight is rounded in blocks along K (../rounding.py). Candidates of a scale are the block's largest |w| divided by `divisors`.
struct Rounding {
  int bits;           // 4 or 8
  std::size_t block;  // values of K that share a scale
  const float* divisors;
  std::size_t candidates;  // kRoundingCandidates or a half of it
  FloatType scale_type;
};

constexpr std::size_t kRoundingCandidates = 32;  // at most
constexpr float kSmallestPeak = 1.5e-36f;        // below this, a divisor over the largest |w| could overflow: the block is zero

constexpr std::size_t kAccumulatorPadding = 64;
constexpr std::size_t kScratchBytes = 128 * 1024;  // a product's scratch memory: an unpacked panel and its scales
constexpr std::size_t kRowSlack = 64;             // readable bytes after the last row of quantized activations

struct Kernels {
  const char* name;

  // accumulator[token][row] += sum over k of weight[row][k] * activation[token][k]
  void (*block_product)(const BlockWeights&, const QuantizedTokens&, const TokenList&, const Accumulator&,
                        std::uint8_t* scratch);
  void (*float_product)(const FloatWeights&, const FloatTokens&, const TokenList&, const Accumulator&);

  // Per block: q = round half to even (x * 127 / max|x|), scale = max|x| / 127 * weight. A block that contains NaN or infinity gets
  // the scale NaN, so that every result of its token becomes NaN.
  void (*quantize)(const float* x, std::size_t k, std::size_t block, int bits, float weight, std::int8_t* q, float* scales,
                   std::int32_t* sums);

  // gate = silu(gate) * up * weight
  void (*swiglu)(float* gate, const float* up, std::size_t count, float weight);

  // x = x * sigmoid(1.702 x)
  void (*quick_gelu)(float* x, std::size_t count);

  // Rounds one row of weights; `importance` of its columns, or null. Scales are values of their type, as float.
  void (*round_row)(const Rounding&, const float* weight, const float* importance, std::size_t columns, std::int8_t* codes, float* scales);

  AttentionKernels attention;

  // Runs only the int8 products, `rounds` times; returns the number of operations (a multiply-add is two).
  double (*peak)(std::size_t rounds);

  // Reads memory with the widest loads; returns a checksum so that the compiler cannot remove the reads.
  std::uint64_t (*read)(const std::uint8_t* data, std::size_t bytes);
};

}  // namespace echovlm
