// Attention within a window in 8 bits, for instruction sets with products of unsigned by signed bytes.
//
//   scores    q + 128, a scale a row  x  k, a scale a position, the window's mean key taken away: it adds the same to all of
//             a row's scores, and the softmax does not see it
//   weights   2^(score - the block's largest) as 0 .. 255  x  v, a scale a channel, the window's mean value taken away and added
//             to the output: weights sum to one
//
// Products of four bytes at a time:
//
//   keys    [16 positions][4 values of the head] x dim / 4      values  [channel][4 positions] x 16 quads of a block, in the order
//                                                                       in which four vectors of weights become one of bytes
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

  static float inverse(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }

  // The scale that makes the largest magnitude 127; 0 for zeros, NaN where one is not finite. Magnitudes are compared as integers,
  // which order as floats do and let NaN and infinity come out largest.
  static float scale_of(std::int32_t largest) {
    return largest >= 0x7f800000 ? __builtin_nanf("") : largest < 0x0da24260 /* 1e-30 */ ? 0.0f : float_of_bits(static_cast<std::uint32_t>(largest)) / 127.0f;
  }

  static float row_scale(const float* x, std::size_t width) {
    Int largest = Isa::magnitude(Isa::load_floats(x));
    for (std::size_t i = kLanes; i < width; i += kLanes) largest = Isa::larger(largest, Isa::magnitude(Isa::load_floats(x + i)));
    return scale_of(Isa::largest(largest));
  }

  // The mean of rows [count][width], taken away from each.
  static void centre(float* rows, std::size_t count, std::size_t width, float* mean) {
    const Float share = Isa::broadcast(1.0f / static_cast<float>(count));
    for (std::size_t column = 0; column < width; column += kLanes) {
      Float sum = Isa::broadcast(0.0f);
      for (std::size_t i = 0; i < count; ++i) sum = Isa::add_floats(sum, Isa::load_floats(rows + i * width + column));
      const Float of_column = Isa::multiply(sum, share);
      Isa::store_floats(mean + column, of_column);
      for (std::size_t i = 0; i < count; ++i) {
        float* const value = rows + i * width + column;
        Isa::store_floats(value, Isa::subtract(Isa::load_floats(value), of_column));
      }
    }
  }

  static void arrange_queries(const float* q, std::size_t count, std::size_t width, std::size_t bytes, const ByteWindow& to) {
    alignas(64) std::uint8_t row[kLargestHead];
    const Float middle = Isa::broadcast(128.0f);
    for (std::size_t i = 0; i < count; ++i) {
      const float scale = row_scale(q + i * width, width);
      const Float factor = Isa::broadcast(inverse(scale));
      for (std::size_t d = 0; d < width; d += kLanes)
        Isa::store_bytes(row + d, Isa::multiply_add(Isa::load_floats(q + i * width + d), factor, middle));
      std::memcpy(to.queries + i * bytes, row, bytes);
      to.query_scales[i] = scale;
    }
  }

  static void arrange_keys(const float* k, std::size_t count, std::size_t padded, std::size_t width, std::size_t words, const ByteWindow& to) {
    alignas(64) std::uint8_t row[kLargestHead];
    std::memset(to.keys + count / kKeyBlock * kKeyBlock * words * 4, 0, (padded - count / kKeyBlock * kKeyBlock) * words * 4);
    for (std::size_t i = count; i < padded; ++i) to.key_scales[i] = 0.0f;
    for (std::size_t i = 0; i < count; ++i) {
      const float scale = row_scale(k + i * width, width);
      const Float factor = Isa::broadcast(inverse(scale));
      for (std::size_t d = 0; d < width; d += kLanes)
        Isa::store_bytes(row + d, Isa::multiply(Isa::load_floats(k + i * width + d), factor));
      std::int8_t* const keys = to.keys + i / kKeyBlock * kKeyBlock * words * 4 + i % kKeyBlock * 4;
      for (std::size_t w = 0; w < words; ++w) std::memcpy(keys + w * kKeyBlock * 4, row + w * 4, 4);
      to.key_scales[i] = scale;
    }
    for (std::size_t i = 0; i < padded; i += kLanes) {
      const std::int8_t* const keys = to.keys + i / kKeyBlock * kKeyBlock * words * 4 + i % kKeyBlock * 4;
      Int sum = Isa::set_int(0);
      for (std::size_t w = 0; w < words; ++w) sum = Isa::template dot<8>(sum, Isa::set_bytes(128), Isa::load(keys + w * kKeyBlock * 4));
      Isa::store_ints(to.key_corrections + i, Isa::negative(sum));
    }
  }

  static void arrange_values(const float* v, std::size_t count, std::size_t padded, std::size_t width, const ByteWindow& to) {
    for (std::size_t column = 0; column < width; column += kLanes) {
      Int largest = Isa::set_int(0);
      for (std::size_t i = 0; i < count; ++i) largest = Isa::larger(largest, Isa::magnitude(Isa::load_floats(v + i * width + column)));
      alignas(64) std::int32_t peaks[kLanes];
      alignas(64) float inverses[kLanes];
      Isa::store_ints(peaks, largest);
      for (std::size_t d = 0; d < kLanes; ++d) {
        to.value_scales[column + d] = scale_of(peaks[d]);
        inverses[d] = inverse(to.value_scales[column + d]);
      }
      const Float factor = Isa::load_floats(inverses), zero = Isa::broadcast(0.0f);
      for (std::size_t i = 0; i < padded; i += 4) {
        Float quad[4];
        for (std::size_t n = 0; n < 4; ++n)
          quad[n] = i + n < count ? Isa::multiply(Isa::load_floats(v + (i + n) * width + column), factor) : zero;
        const std::size_t block = i / kSoftmaxBlock * kSoftmaxBlock, place = Isa::place_of_quad(i % kSoftmaxBlock / 4);
        Isa::store_ints(reinterpret_cast<std::int32_t*>(to.values + (block + place * 4) * width + column * 4), Isa::quads(quad));
      }
    }
  }

  // `q`, `k` and `v` [count][padded_dim] float, with zeros beyond dim; `k` and `v` are changed.
  static void arrange(const float* q, float* k, float* v, std::size_t count, std::size_t dim, const ByteWindow& to) {
    const std::size_t words = byte_words(dim), width = padded_dim(dim);
    const std::size_t padded = (count + kSoftmaxBlock - 1) / kSoftmaxBlock * kSoftmaxBlock;
    float mean_key[kLargestHead];
    centre(k, count, width, mean_key);
    centre(v, count, width, to.value_means);
    arrange_queries(q, count, width, words * 4, to);
    arrange_keys(k, count, padded, width, words, to);
    arrange_values(v, count, padded, width, to);
    // A mean that is not finite spoils every key, and so every output.
    for (std::size_t d = 0; d < dim; ++d)
      if (!(mean_key[d] - mean_key[d] == 0.0f)) to.value_means[0] = to.value_means[d] = __builtin_nanf("");
  }

  // 255 * 2^x within 2e-3 of its value, for x up to 0: what is rounded to a byte needs no more. With x = floor(x) + r, the polynomial
  // of degree 2 with the least relative error on [0, 1) gives 2^r.
  static Float weight(Float x) {
    const Float r = Isa::fraction(x);
    Float p = Isa::broadcast(255 * 0.33718942f);
    p = Isa::multiply_add(p, r, Isa::broadcast(255 * 0.65763629f));
    p = Isa::multiply_add(p, r, Isa::broadcast(255 * 1.0017248f));
    return Isa::times_power_of_floor(p, x);
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
      Int sum = Isa::set_int(0);
      for (std::size_t i = 0; i < padded; i += 4 * kLanes) {
        Float w[4];
        each<4>([&](auto n) ECHOVLM_LAMBDA {
          w[n.value] = weight(Isa::multiply_add(Isa::load_floats(scores + m * kByteBlock + i + n.value * kLanes), factor, shift));
        });
        const auto bytes = Isa::unsigned_bytes(w);
        Isa::store(weights + m * kByteBlock + i, bytes);
        sum = Isa::template dot<8>(sum, bytes, Isa::set_bytes(1));
      }
      const Float old = AttentionTiles<Isa>::power_of_two(Isa::broadcast(before[m]));
      const Float added = AttentionTiles<Isa>::power_of_two(Isa::broadcast(now[m]));
      float* const divisor = divisors + m * kLanes;
      Isa::store_floats(divisor, Isa::multiply_add(Isa::to_float(sum), added, Isa::multiply(Isa::load_floats(divisor), old)));
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
