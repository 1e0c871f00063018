// What an instruction set offers to attention: softmax(q K^T) V over blocks of positions, online, for a list of query rows.
//
// Keys lie in blocks of kKeyBlock positions, transposed: 16 neighbouring positions are the lanes of a vector, so that a score is
// summed over the head's values in their order, in one lane, and its bits depend on nothing but the row and the key.
//
//   keys    [block][value of the head][16 positions]         values  [position][value of the head]
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace echovlm {

enum class CacheType { kFloat32, kFloat16, kInt8 };

// These are static: a linker must not share a function between files that are compiled for different instruction sets.
static constexpr std::size_t size_of(CacheType type) { return type == CacheType::kFloat32 ? 4 : type == CacheType::kFloat16 ? 2 : 1; }

constexpr std::size_t kLargestHead = 512;    // values of a head
constexpr std::size_t kKeyBlock = 16;        // positions whose keys lie together
constexpr std::size_t kSoftmaxBlock = 64;    // positions between two corrections of a row's running maximum
constexpr std::size_t kAttentionRows = 12;   // query rows of the largest tile of any instruction set

// One head's keys and values.
struct KeysAndValues {
  const void* keys;
  const void* values;
  CacheType type;
  std::size_t dim;           // values of a head
  std::size_t value_stride;  // elements from one position's values to the next
  const float* value_scales;  // [dim] where the type is int8
};

// Query rows over the same keys, each sees the positions below its limit; limits ascend.
struct QueryRows {
  const float* q;  // [count][dim], times log2(e) / sqrt(dim), and times the keys' scales where they are int8
  const std::size_t* limits;
  std::size_t count;
};

// A row's weighted sum of values so far, [count][padded_dim(dim)], what it must be divided by, and the largest score, base 2.
struct SoftmaxState {
  float *values, *divisors, *peaks;
};

// What queries are multiplied by: scores are logarithms to base 2, so that weights are powers of two.
static inline float query_scale(std::size_t dim) { return static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(dim))); }

static constexpr std::size_t padded_dim(std::size_t dim) { return (dim + 15) / 16 * 16; }

// Floats that `attend` works in.
static constexpr std::size_t attend_scratch(std::size_t dim, std::size_t rows) {
  return (kAttentionRows + 2 * padded_dim(dim)) * kSoftmaxBlock + rows * 16;
}

// A window's queries, keys and values of one head as bytes; see byte_attention.hpp. `positions` are padded to kSoftmaxBlock.
struct ByteWindow {
  std::uint8_t* queries;           // [rows][padded_dim]
  float* query_scales;             // [rows]
  std::int8_t* keys;               // [positions / 16][byte_words][16][4]
  float* key_scales;               // [positions]
  std::int32_t* key_corrections;   // [positions]: -128 times the sum of the key's bytes, for queries are stored 128 above their values
  std::int8_t* values;             // [positions / 4][padded_dim][4]
  float *value_scales, *value_means;  // [padded_dim]
};

static constexpr std::size_t byte_words(std::size_t dim) { return (dim + 3) / 4; }

// A window's rows of one head: query, key and value of a row are `part` elements apart, rows `stride`.
struct ByteRows {
  const float *qkv, *cos, *sin;
  std::size_t count, dim, part, stride;
};

constexpr std::size_t kByteGroup = 16;  // query rows that go through the positions together

struct ByteAttentionKernels {
  // Fills `to`; `scratch` holds 2 [count][padded_dim].
  void (*arrange)(const ByteRows&, const ByteWindow& to, float* scratch);
  // y [count][dim], `stride` apart: rows first .. first + count of the window; `scratch` holds [kByteGroup][padded_dim].
  void (*attend)(const ByteWindow&, std::size_t positions, std::size_t dim, std::size_t first, std::size_t count, float* y,
                 std::size_t stride, float* scratch);
};

struct AttentionKernels {
  // `state` of the rows over positions `first` (a multiple of kSoftmaxBlock) to `last`.
  void (*attend)(const KeysAndValues&, const QueryRows&, std::size_t first, std::size_t last, const SoftmaxState& state,
                 float* scratch);

  // Rotary embedding of one head, halves convention, each value times `scale` and, where there are, its `scales`:
  // y[i] = x[i] cos[i] - x[i + dim/2] sin[i], y[i + dim/2] = x[i + dim/2] cos[i] + x[i] sin[i].
  void (*rotate)(const float* x, const float* cos, const float* sin, std::size_t dim, float scale, const float* scales, float* y);

  // Values of one head into a cache, `stride` elements apart: rounded to half, or to q = round half to even (x / scale).
  void (*store)(const float* x, std::size_t dim, CacheType type, const float* scales, void* to, std::size_t stride);

  ByteAttentionKernels bytes;  // null where the instruction set has none
};

}  // namespace echovlm
