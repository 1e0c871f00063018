// Attention within a window in 8 bits, for instruction sets with products of unsigned by signed bytes.
//
//   scores    q + 128, a scale a row  x  k, a scale a position, the window's mean key taken away: it adds the same to all of
//             a row's scores, and the softmax does not see it
//   weights   2^(score - the block's largest) as 0 .. 255  x  v, a scale a channel, the window's mean value taken away and added
//             to the output: weights sum to one
//
// Products of four bytes at a time:
//
//   keys    [16 positions][4 values of the head] x dim / 4      values  [channel][4 positions] x 16 quads of a block
//
// A block's weighted sum is exact in int32 and joins the row's float sum relative to the row's largest score so far.
#pragma once

#include "attention_tiles.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct ByteAttentionTiles {
  using Float = typename Isa::Float;
  using Int = typename Isa::Int;
  static constexpr std::size_t kLanes = Isa::lanes;
  static constexpr int kRows = 4;
  static constexpr std::size_t kByteBlock = 2 * kSoftmaxBlock;
  static constexpr float kUnseen = -1e20f;  // a score whose weight is zero, and that no arithmetic turns into NaN
  static constexpr int kKeyVectors = kSoftmaxBlock / kLanes;
  static constexpr int kValueVectors = 5;  // with 4 rows: 20 sums, 5 of values and a weight: 26 of 32 registers

  static std::int32_t rounded(float x) {
    return static_cast<std::int32_t>(bits_of_float(x + kRounder) - bits_of_float(kRounder));
  }

  // The scale that makes the largest of |x| 127; 0 for zeros, NaN where one is not finite.
  static float scale_of(const float* x, std::size_t count) {
    std::uint32_t peak = 0;  // as integers, which order as floats do and let NaN and infinity come out largest
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t magnitude = bits_of_float(x[i]) & 0x7fffffffu;
      peak = magnitude > peak ? magnitude : peak;
    }
    const float largest = float_of_bits(peak);
    return peak >= 0x7f800000u ? __builtin_nanf("") : largest < 1e-30f ? 0.0f : largest / 127.0f;
  }

  static float inverse(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

  // `q`, `k` and `v` [count][dim] float; `k` and `v` are changed.
  static void arrange(float* __restrict q, float* __restrict k, float* __restrict v, std::size_t count, std::size_t dim, const ByteWindow& to) {
    const std::size_t words = byte_words(dim), width = padded_dim(dim);
    const float share = 1.0f / static_cast<float>(count);
    float mean_key[kLargestHead], mean_value[kLargestHead];
    for (std::size_t d = 0; d < dim; ++d) mean_key[d] = mean_value[d] = 0.0f;
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t d = 0; d < dim; ++d) mean_key[d] += k[i * dim + d];
      for (std::size_t d = 0; d < dim; ++d) mean_value[d] += v[i * dim + d];
    }
    float peaks[kLargestHead];
    for (std::size_t d = 0; d < dim; ++d) {
      mean_key[d] *= share;
      mean_value[d] *= share;
      peaks[d] = 0.0f;
    }
    bool finite = true;  // all keys
    const std::size_t padded = (count + kSoftmaxBlock - 1) / kSoftmaxBlock * kSoftmaxBlock;
    std::memset(to.keys, 0, padded * words * 4);
    std::memset(to.values, 0, padded * width);
    for (std::size_t i = 0; i < padded; ++i) to.key_scales[i] = 0.0f;
    for (std::size_t i = 0; i < padded; ++i) to.key_corrections[i] = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const float query_scale = scale_of(q + i * dim, dim), query_inverse = inverse(query_scale);
      std::uint8_t* __restrict const query = to.queries + i * words * 4;
      for (std::size_t d = 0; d < dim; ++d) query[d] = static_cast<std::uint8_t>(rounded(q[i * dim + d] * query_inverse) + 128);
      for (std::size_t d = dim; d < words * 4; ++d) query[d] = 0;
      to.query_scales[i] = query_scale;
      float* __restrict const key = k + i * dim;
      for (std::size_t d = 0; d < dim; ++d) key[d] -= mean_key[d];
      const float key_scale = scale_of(key, dim), key_inverse = inverse(key_scale);
      finite = finite && key_scale == key_scale;
      std::int8_t bytes[kLargestHead + 4] = {};
      std::int32_t sum = 0;
      for (std::size_t d = 0; d < dim; ++d) {
        const std::int32_t value = rounded(key[d] * key_inverse);
        bytes[d] = static_cast<std::int8_t>(value);
        sum += value;
      }
      std::int8_t* const keys = to.keys + i / kKeyBlock * kKeyBlock * words * 4 + i % kKeyBlock * 4;
      for (std::size_t w = 0; w < words; ++w) std::memcpy(keys + w * kKeyBlock * 4, bytes + w * 4, 4);
      to.key_scales[i] = key_scale;
      to.key_corrections[i] = -128 * sum;
      float* __restrict const value = v + i * dim;
      for (std::size_t d = 0; d < dim; ++d) {
        value[d] -= mean_value[d];
        const float magnitude = value[d] < 0.0f ? -value[d] : value[d];
        peaks[d] = magnitude > peaks[d] ? magnitude : peaks[d];
      }
    }
    float inverses[kLargestHead], zeros[kLargestHead] = {};
    for (std::size_t d = 0; d < width; ++d) {
      to.value_scales[d] = d < dim ? scale_of(peaks + d, 1) : 0.0f;
      to.value_means[d] = d < dim ? (finite ? mean_value[d] : __builtin_nanf("")) : 0.0f;
      inverses[d] = inverse(to.value_scales[d]);
    }
    for (std::size_t i = 0; i < count; i += 4) {
      const float* rows[4];
      for (std::size_t n = 0; n < 4; ++n) rows[n] = i + n < count ? v + (i + n) * dim : zeros;
      std::uint32_t quads[kLargestHead];
      for (std::size_t d = 0; d < dim; ++d) {
        const auto byte = [&](std::size_t n) { return static_cast<std::uint32_t>(rounded(rows[n][d] * inverses[d])) & 0xff; };
        quads[d] = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
      }
      std::memcpy(to.values + i * width, quads, dim * 4);
    }
  }

  // 255 * 2^x within 2e-4 of its value, for x up to 0: what is rounded to a byte needs no more.
  static Float weight(Float x) {
    const Float n = Isa::round(x), r = Isa::subtract(x, n);
    Float p = Isa::broadcast(255 * 5.5829009e-2f);
    p = Isa::multiply_add(p, r, Isa::broadcast(255 * 2.4263191e-1f));
    p = Isa::multiply_add(p, r, Isa::broadcast(255 * 6.9312103e-1f));
    p = Isa::multiply_add(p, r, Isa::broadcast(255 * 9.9992450e-1f));
    return Isa::times_power_of_two(p, n);
  }

  template <int M>
  static void score(const ByteWindow& w, std::size_t row, std::size_t first, std::size_t words, float* scores) {
    Int sums[M][kKeyVectors];
    const std::int8_t* keys = w.keys + first * words * 4;
    each<kKeyVectors>([&](auto n) ECHOVLM_LAMBDA {
      const Int start = Isa::load_ints(w.key_corrections + first + n.value * kLanes);
      each<M>([&](auto m) ECHOVLM_LAMBDA { sums[m.value][n.value] = start; });
    });
    const std::uint8_t* query[M];
    each<M>([&](auto m) ECHOVLM_LAMBDA { query[m.value] = w.queries + (row + m.value) * words * 4; });
    for (std::size_t i = 0; i < words; ++i) {
      typename Isa::Bytes k[kKeyVectors];
      each<kKeyVectors>([&](auto n) ECHOVLM_LAMBDA {
        constexpr std::size_t at = n.value * kLanes;
        k[n.value] = Isa::load(keys + at / kKeyBlock * kKeyBlock * words * 4 + (i * kKeyBlock + at % kKeyBlock) * 4);
      });
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto word = Isa::broadcast_word(reinterpret_cast<const std::int8_t*>(query[m.value]) + i * 4);
        each<kKeyVectors>([&](auto n) ECHOVLM_LAMBDA {
          sums[m.value][n.value] = Isa::template dot<8>(sums[m.value][n.value], word, k[n.value]);
        });
      });
    }
    each<kKeyVectors>([&](auto n) ECHOVLM_LAMBDA {
      const Float scale = Isa::load_floats(w.key_scales + first + n.value * kLanes);
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        Isa::store_floats(scores + m.value * kByteBlock + n.value * kLanes,
                          Isa::multiply(Isa::to_float(sums[m.value][n.value]), scale));
      });
    });
  }

  template <int M, int N>
  static void add_values(const std::int8_t* values, std::size_t width, std::size_t quads, const std::uint8_t* weights, const float (&before)[kRows],
                         const float (&now)[kRows], float* sums) {
    Int block[M][N];
    each<M>([&](auto m) ECHOVLM_LAMBDA { each<N>([&](auto n) ECHOVLM_LAMBDA { block[m.value][n.value] = Isa::set_int(0); }); });
    for (std::size_t quad = 0; quad < quads; ++quad) {
      typename Isa::Bytes v[N];
      each<N>([&](auto n) ECHOVLM_LAMBDA { v[n.value] = Isa::load(values + quad * 4 * width + n.value * kLanes * 4); });
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto word = Isa::broadcast_word(reinterpret_cast<const std::int8_t*>(weights) + m.value * kByteBlock + quad * 4);
        each<N>([&](auto n) ECHOVLM_LAMBDA { block[m.value][n.value] = Isa::template dot<8>(block[m.value][n.value], word, v[n.value]); });
      });
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      const Float old = Isa::broadcast(before[m.value]), added = Isa::broadcast(now[m.value]);
      each<N>([&](auto n) ECHOVLM_LAMBDA {
        float* const sum = sums + m.value * width + n.value * kLanes;
        Isa::store_floats(sum, Isa::multiply_add(Isa::to_float(block[m.value][n.value]), added, Isa::multiply(Isa::load_floats(sum), old)));
      });
    });
  }

  // Rows row .. row + M over one block of positions.
  template <int M>
  static void rows(const ByteWindow& w, std::size_t row, std::size_t first, std::size_t positions, std::size_t dim, float* values,
                   float* divisors, float* peaks) {
    alignas(64) float scores[kRows * kByteBlock];
    alignas(64) std::uint8_t weights[kRows * kByteBlock];
    const std::size_t width = padded_dim(dim), padded = (positions + kSoftmaxBlock - 1) / kSoftmaxBlock * kSoftmaxBlock;
    for (std::size_t at = 0; at < padded; at += kSoftmaxBlock) score<M>(w, row, first + at, byte_words(dim), scores + at);
    if (positions < padded)
      for (int m = 0; m < M; ++m)
        for (std::size_t i = positions; i < padded; ++i) scores[m * kByteBlock + i] = kUnseen;

    Float highest[kRows];
    for (int m = 0; m < kRows; ++m) {
      highest[m] = Isa::load_floats(scores + (m < M ? m : 0) * kByteBlock);
      for (std::size_t i = kLanes; m < M && i < padded; i += kLanes)
        highest[m] = Isa::larger(highest[m], Isa::load_floats(scores + m * kByteBlock + i));
    }
    float of_block[kRows], before[kRows], now[kRows];
    Isa::largest_of_four(highest, of_block);
    for (int m = 0; m < M; ++m) {
      const float scale = w.query_scales[row + m];
      of_block[m] *= scale;
      const float last = peaks[m], peak = of_block[m] > last ? of_block[m] : last;
      before[m] = last - peak;
      now[m] = of_block[m] - peak;
      peaks[m] = peak;
      const Float factor = Isa::broadcast(scale), shift = Isa::broadcast(-of_block[m]);
      Float sum = Isa::broadcast(0.0f);
      for (std::size_t i = 0; i < padded; i += kLanes) {
        const Float w8 = weight(Isa::multiply_add(Isa::load_floats(scores + m * kByteBlock + i), factor, shift));
        Isa::store_bytes(weights + m * kByteBlock + i, w8);
        sum = Isa::add_floats(sum, w8);
      }
      const Float old = AttentionTiles<Isa>::power_of_two(Isa::broadcast(before[m]));
      const Float added = AttentionTiles<Isa>::power_of_two(Isa::broadcast(now[m]));
      float* const divisor = divisors + m * kLanes;
      Isa::store_floats(divisor, Isa::multiply_add(sum, added, Isa::multiply(Isa::load_floats(divisor), old)));
      before[m] = Isa::first(old);
      now[m] = Isa::first(added);
    }
    const std::int8_t* v = w.values + first * width;
    const std::size_t quads = padded / 4;
    std::size_t column = 0;
    for (; column + kValueVectors * kLanes <= width; column += kValueVectors * kLanes)
      add_values<M, kValueVectors>(v + column * 4, width, quads, weights, before, now, values + column);
    for (; column < width; column += kLanes) add_values<M, 1>(v + column * 4, width, quads, weights, before, now, values + column);
  }

  // y [count][dim], `stride` apart: rows first .. first + count of the window.
  static void attend(const ByteWindow& w, std::size_t positions, std::size_t dim, std::size_t first, std::size_t count, float* y,
                     std::size_t stride, float* scratch) {
    const std::size_t width = padded_dim(dim);
    float *const values = scratch, *const divisors = values + count * width, *const peaks = divisors + count * kLanes;
    std::memset(values, 0, count * width * sizeof(float));
    std::memset(divisors, 0, count * kLanes * sizeof(float));
    for (std::size_t i = 0; i < count; ++i) peaks[i] = -__builtin_inff();
    for (std::size_t at = 0; at < positions; at += kByteBlock) {
      const std::size_t some = positions - at < kByteBlock ? positions - at : kByteBlock;
      std::size_t i = 0;
      for (; i + kRows <= count; i += kRows)
        rows<kRows>(w, first + i, at, some, dim, values + i * width, divisors + i * kLanes, peaks + i);
      for (; i < count; ++i) rows<1>(w, first + i, at, some, dim, values + i * width, divisors + i * kLanes, peaks + i);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const float share = 1.0f / Isa::sum(Isa::load_floats(divisors + i * kLanes)) + 0.0f * w.query_scales[first + i];  // a row that holds NaN gives NaN
      float* __restrict const to = y + i * stride;
      const float* __restrict const from = values + i * width;
      const float* __restrict const scales = w.value_scales;
      const float* __restrict const means = w.value_means;
      for (std::size_t d = 0; d < dim; ++d) to[d] = from[d] * share * scales[d] + means[d];
    }
  }

  static constexpr ByteAttentionKernels kTable{arrange, attend};
};

}  // namespace
}  // namespace echovlm
