// Attention in float32 with an instruction set's vectors, whatever the cache's type.
//
// A tile holds scores of M rows by N vectors of positions, or outputs of M rows by N vectors of a head's values, in registers:
//
//              positions, or values of the head
//             | N vectors |
//   M rows    | sums      |   += broadcast(row's value, or weight) * N vectors of keys, or of values
//
// Each sum is one lane of one register from its first product to its last, in the order of the head's values or of positions:
// tiles of other shapes give the same bits. So a row has the bits that it has alone.
#pragma once

#include "../../dual_path_moe/cpu/activations.hpp"
#include "attention_kernels.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct AttentionTiles {
  using Float = typename Isa::Float;
  static constexpr std::size_t kLanes = Isa::lanes;
  static constexpr int kRows = Isa::attention_rows;
  static constexpr int kVectors = 2;
  static constexpr std::size_t kTilePositions = kVectors * kLanes;
  static constexpr std::size_t kBlockVectors = kSoftmaxBlock / kLanes;

  // Rows [M] of q by N vectors of positions.
  template <int M, int N>
  static void score_tile(const float* const* q, const float* keys, std::size_t dim, std::size_t column, float* scores) {
    Float sums[M][N];
    const float* from[N];
    each<N>([&](auto n) ECHOVLM_LAMBDA {
      const std::size_t at = column + n.value * kLanes;
      from[n.value] = keys + at / kKeyBlock * dim * kKeyBlock + at % kKeyBlock;
    });
    each<M>([&](auto m) ECHOVLM_LAMBDA { each<N>([&](auto n) ECHOVLM_LAMBDA { sums[m.value][n.value] = Isa::broadcast(0.0f); }); });
    for (std::size_t i = 0; i < dim; ++i) {
      Float k[N];
      each<N>([&](auto n) ECHOVLM_LAMBDA { k[n.value] = Isa::load_floats(from[n.value] + i * kKeyBlock); });
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const Float value = Isa::broadcast(q[m.value][i]);
        each<N>([&](auto n) ECHOVLM_LAMBDA {
          sums[m.value][n.value] = Isa::multiply_add(value, k[n.value], sums[m.value][n.value]);
        });
      });
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      each<N>([&](auto n) ECHOVLM_LAMBDA {
        Isa::store_floats(scores + m.value * kSoftmaxBlock + column + n.value * kLanes, sums[m.value][n.value]);
      });
    });
  }

  // outputs[m][0 .. N * lanes) += sum over positions of weights[m][position] * values[position].
  template <int M, int N>
  static void value_tile(const float* weights, const float* values, std::size_t stride, std::size_t positions,
                         float* const* outputs, std::size_t column) {
    Float sums[M][N];
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      each<N>([&](auto n) ECHOVLM_LAMBDA { sums[m.value][n.value] = Isa::load_floats(outputs[m.value] + column + n.value * kLanes); });
    });
    const float* from = values + column;
    for (std::size_t i = 0; i < positions; ++i, from += stride) {
      Float v[N];
      each<N>([&](auto n) ECHOVLM_LAMBDA { v[n.value] = Isa::load_floats(from + n.value * kLanes); });
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const Float weight = Isa::broadcast(weights[m.value * kSoftmaxBlock + i]);
        each<N>([&](auto n) ECHOVLM_LAMBDA {
          sums[m.value][n.value] = Isa::multiply_add(weight, v[n.value], sums[m.value][n.value]);
        });
      });
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      each<N>([&](auto n) ECHOVLM_LAMBDA { Isa::store_floats(outputs[m.value] + column + n.value * kLanes, sums[m.value][n.value]); });
    });
  }

  template <int M>
  static void weigh(const float* weights, const float* values, std::size_t stride, std::size_t positions, float* const* outputs,
                    std::size_t width) {
    if (positions == 0) return;
    std::size_t column = 0;
    for (; column + kTilePositions <= width; column += kTilePositions)
      value_tile<M, kVectors>(weights, values, stride, positions, outputs, column);
    for (; column < width; column += kLanes) value_tile<M, 1>(weights, values, stride, positions, outputs, column);
  }

  // 2^x within 2e-7 of its value, for x up to 0; NaN stays NaN.
  static Float power_of_two(Float x) {
    x = Isa::larger(Isa::broadcast(-126.0f), x);
    const Float n = Isa::round(x), r = Isa::subtract(x, n);
    // The polynomial of degree 5 with the least relative error on [-1/2, 1/2].
    Float p = Isa::broadcast(1.32764718e-3f);
    p = Isa::multiply_add(p, r, Isa::broadcast(9.67554133e-3f));
    p = Isa::multiply_add(p, r, Isa::broadcast(5.55071327e-2f));
    p = Isa::multiply_add(p, r, Isa::broadcast(2.40221197e-1f));
    p = Isa::multiply_add(p, r, Isa::broadcast(6.93146967e-1f));
    p = Isa::multiply_add(p, r, Isa::broadcast(1.00000007f));
    return Isa::times_power_of_two(p, n);
  }

  // Turns a row's scores into weights relative to its running peak; what came before is made relative to the new one.
  static void softmax_row(float* scores, std::size_t positions, float* peak, float* sums, float* values, std::size_t width) {
    for (std::size_t i = positions; i < kSoftmaxBlock; ++i) scores[i] = -__builtin_inff();
    Float highest = Isa::load_floats(scores);
    for (std::size_t v = 1; v < kBlockVectors; ++v) highest = Isa::larger(highest, Isa::load_floats(scores + v * kLanes));
    const float of_block = Isa::largest(highest);
    const float before = *peak, now = of_block > before ? of_block : before;
    if (now != before) {
      *peak = now;
      const Float correction = power_of_two(Isa::broadcast(before - now));
      for (std::size_t i = 0; i < 16; i += kLanes) Isa::store_floats(sums + i, Isa::multiply(Isa::load_floats(sums + i), correction));
      for (std::size_t i = 0; i < width; i += kLanes)
        Isa::store_floats(values + i, Isa::multiply(Isa::load_floats(values + i), correction));
    }
    const Float zero = Isa::broadcast(now);
    for (std::size_t v = 0; v < kBlockVectors; ++v) {
      const Float weight = power_of_two(Isa::subtract(Isa::load_floats(scores + v * kLanes), zero));
      Isa::store_floats(scores + v * kLanes, weight);
      float* const sum = sums + v * kLanes % 16;
      Isa::store_floats(sum, Isa::add_floats(Isa::load_floats(sum), weight));
    }
  }

  struct Block {
    const float *keys, *values;
    std::size_t first, positions, dim, value_stride;
  };

  // Rows row .. row + M over one block of positions.
  template <int M>
  static void tile(const Block& block, const QueryRows& rows, std::size_t row, const SoftmaxState& state, float* scores, float* sums) {
    const std::size_t width = padded_dim(block.dim);
    const float* q[M];
    float* outputs[M];
    for (int m = 0; m < M; ++m) {
      q[m] = rows.q + (row + m) * block.dim;
      outputs[m] = state.values + (row + m) * width;
    }
    for (std::size_t column = 0; column < block.positions; column += kTilePositions) {
      if (block.positions - column > kLanes)
        score_tile<M, kVectors>(q, block.keys, block.dim, column, scores);
      else
        score_tile<M, 1>(q, block.keys, block.dim, column, scores);
    }
    std::size_t seen[M];
    for (int m = 0; m < M; ++m) {
      const std::size_t limit = rows.limits[row + m] - block.first;
      seen[m] = limit < block.positions ? limit : block.positions;
      softmax_row(scores + m * kSoftmaxBlock, seen[m], state.peaks + row + m, sums + (row + m) * 16, outputs[m], width);
    }
    // What only some rows of the tile see is theirs alone: a weight of zero would let a NaN through.
    weigh<M>(scores, block.values, block.value_stride, seen[0], outputs, width);
    for (int m = 1; m < M; ++m)
      if (seen[m] > seen[0])
        weigh<1>(scores + m * kSoftmaxBlock + seen[0], block.values + seen[0] * block.value_stride, block.value_stride,
                 seen[m] - seen[0], outputs + m, width);
  }

  using Tile = void (*)(const Block&, const QueryRows&, std::size_t, const SoftmaxState&, float*, float*);
  template <std::size_t... I>
  static constexpr Tile tile_of(std::size_t rows, std::index_sequence<I...>) {
    constexpr Tile tiles[] = {tile<static_cast<int>(I) + 1>...};
    return tiles[rows - 1];
  }

  static void widen(const void* from, CacheType type, std::size_t count, float* to) {
    if (type == CacheType::kFloat16) {
      widen_half(static_cast<const std::uint16_t*>(from), count, to);
    } else if (type == CacheType::kInt8) {
      const auto* bytes = static_cast<const std::int8_t*>(from);
      for (std::size_t i = 0; i < count; ++i) to[i] = bytes[i];
    } else {
      std::memcpy(to, from, count * sizeof(float));
    }
  }

  static void attend(const KeysAndValues& cache, const QueryRows& rows, std::size_t first, std::size_t last, const SoftmaxState& state,
                     float* scratch) {
    const std::size_t dim = cache.dim, width = padded_dim(dim), size = size_of(cache.type);
    const bool in_place = cache.type == CacheType::kFloat32;
    float* const scores = scratch;
    float* const wide_keys = scores + kAttentionRows * kSoftmaxBlock;
    float* const wide_values = wide_keys + width * kSoftmaxBlock;
    float* const sums = wide_values + width * kSoftmaxBlock;
    std::memset(state.values, 0, rows.count * width * sizeof(float));
    std::memset(sums, 0, rows.count * 16 * sizeof(float));
    for (std::size_t row = 0; row < rows.count; ++row) state.peaks[row] = -__builtin_inff();
    std::size_t row_first = 0;
    for (std::size_t at = first; at < last; at += kSoftmaxBlock) {
      while (row_first < rows.count && rows.limits[row_first] <= at) ++row_first;
      if (row_first == rows.count) break;
      const std::size_t seen = rows.limits[rows.count - 1] < last ? rows.limits[rows.count - 1] : last;
      const std::size_t positions = seen - at < kSoftmaxBlock ? seen - at : kSoftmaxBlock;
      const auto* keys = static_cast<const std::uint8_t*>(cache.keys) + at * dim * size;
      const auto* values = static_cast<const std::uint8_t*>(cache.values) + at * cache.value_stride * size;
      Block block{reinterpret_cast<const float*>(keys), reinterpret_cast<const float*>(values), at, positions, dim, cache.value_stride};
      if (!in_place) {
        widen(keys, cache.type, (positions + kKeyBlock - 1) / kKeyBlock * kKeyBlock * dim, wide_keys);
        block.keys = wide_keys;
      }
      if (!in_place || dim != width) {
        for (std::size_t i = 0; i < positions; ++i) {
          float* const to = wide_values + i * width;
          widen(values + i * cache.value_stride * size, cache.type, dim, to);
          if (cache.type == CacheType::kInt8)
            for (std::size_t d = 0; d < dim; ++d) to[d] *= cache.value_scales[d];
          for (std::size_t d = dim; d < width; ++d) to[d] = 0.0f;
        }
        block.values = wide_values;
        block.value_stride = width;
      }
      for (std::size_t row = row_first; row < rows.count;) {
        const std::size_t some = rows.count - row < kRows ? rows.count - row : kRows;
        tile_of(some, std::make_index_sequence<kRows>{})(block, rows, row, state, scores, sums);
        row += some;
      }
    }
    for (std::size_t row = 0; row < rows.count; ++row) {
      Float total = Isa::load_floats(sums + row * 16);
      for (std::size_t i = kLanes; i < 16; i += kLanes) total = Isa::add_floats(total, Isa::load_floats(sums + row * 16 + i));
      state.divisors[row] = Isa::sum(total);
    }
  }

  static void rotate(const float* __restrict x, const float* __restrict cos, const float* __restrict sin, std::size_t dim, float scale,
                     const float* __restrict scales, float* __restrict y) {
    const std::size_t half = dim / 2;
    const Float factor = Isa::broadcast(scale);
    // The last vector ends where the half ends, and makes some values again.
    for (std::size_t i = 0; half >= kLanes && i < half; i += kLanes) {
      const std::size_t at = i + kLanes <= half ? i : half - kLanes;
      const Float a = Isa::load_floats(x + at), b = Isa::load_floats(x + half + at), c = Isa::load_floats(cos + at), s = Isa::load_floats(sin + at);
      const Float first = Isa::subtract(Isa::multiply(a, c), Isa::multiply(b, s));
      const Float second = Isa::add_floats(Isa::multiply(b, c), Isa::multiply(a, s));
      Isa::store_floats(y + at, Isa::multiply(first, factor));
      Isa::store_floats(y + half + at, Isa::multiply(second, factor));
    }
    for (std::size_t i = 0; half < kLanes && i < half; ++i) {
      const float a = x[i], b = x[i + half];
      y[i] = (a * cos[i] - b * sin[i]) * scale;
      y[i + half] = (b * cos[i] + a * sin[i]) * scale;
    }
    if (scales)
      for (std::size_t i = 0; i < dim; ++i) y[i] *= scales[i];
  }

  static void store(const float* x, std::size_t dim, CacheType type, const float* scales, void* to, std::size_t stride) {
    if (type == CacheType::kFloat32) {
      auto* const out = static_cast<float*>(to);
      for (std::size_t i = 0; i < dim; ++i) out[i * stride] = x[i];
    } else if (type == CacheType::kFloat16) {
      auto* const out = static_cast<std::uint16_t*>(to);
      for (std::size_t i = 0; i < dim; ++i) out[i * stride] = float_to_half(x[i]);
    } else {
      auto* const out = static_cast<std::int8_t*>(to);
      for (std::size_t i = 0; i < dim; ++i) {
        const float scaled = x[i] / scales[i], low = scaled < -128.0f ? -128.0f : scaled, clipped = low > 127.0f ? 127.0f : low;
        out[i * stride] = static_cast<std::int8_t>(static_cast<std::int32_t>(bits_of_float(clipped + kRounder) - bits_of_float(kRounder)));
      }
    }
  }

  static constexpr AttentionKernels table(ByteAttentionKernels bytes) { return {attend, rotate, store, bytes}; }
};

}  // namespace
}  // namespace echovlm
