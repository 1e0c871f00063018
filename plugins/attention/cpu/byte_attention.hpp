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
  static constexpr int kKeyVectors = Isa::byte_key_vectors, kValueVectors = Isa::byte_value_vectors;
  static constexpr std::size_t kPacked = 4 * kLanes;  // positions whose weights become one vector of bytes
  static constexpr std::size_t kTilePositions = kKeyVectors * kLanes;

  static constexpr std::size_t kRowsAhead = 6;

  // Asks memory for a row's query, key and value of one head: rows are too far apart for a hardware prefetcher.
  static void ask_for(const float* x, std::size_t part, std::size_t dim) {
    for (std::size_t i = 0; i < 3; ++i)
      for (std::size_t d = 0; d < dim; d += 16) __builtin_prefetch(x + i * part + d);
  }

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

  static void store_row(const float* x, std::size_t width, float scale, float middle, std::uint8_t* to) {
    const Float factor = Isa::broadcast(inverse(scale)), shift = Isa::broadcast(middle);
    for (std::size_t d = 0; d < width; d += kLanes) Isa::store_bytes(to + d, Isa::multiply_add(Isa::load_floats(x + d), factor, shift));
  }

  // What a window's keys and values have in common, and how far values reach, [padded_dim] each.
  struct Channels {
    alignas(64) float key_sums[kLargestHead], value_sums[kLargestHead], lowest[kLargestHead], highest[kLargestHead];
  };

  // Queries as bytes; keys, rotated, and values into `k` and `v` [count][padded_dim].
  static void gather(const ByteRows& rows, const ByteWindow& to, float* k, float* v, Channels& channels) {
    const std::size_t dim = rows.dim, width = padded_dim(dim);
    const float scale_of_queries = query_scale(dim);
    alignas(64) float q[kLargestHead] = {};
    for (std::size_t d = 0; d < width; d += kLanes) {
      Isa::store_floats(channels.key_sums + d, Isa::broadcast(0.0f));
      Isa::store_floats(channels.value_sums + d, Isa::broadcast(0.0f));
      Isa::store_floats(channels.lowest + d, Isa::broadcast(__builtin_inff()));
      Isa::store_floats(channels.highest + d, Isa::broadcast(-__builtin_inff()));
    }
    for (std::size_t i = 0; i < rows.count; ++i, k += width, v += width) {
      const float* const x = rows.qkv + i * rows.stride;
      if (i + kRowsAhead < rows.count) ask_for(x + kRowsAhead * rows.stride, rows.part, dim);
      const float *const cos = rows.cos + i * dim / 2, *const sin = rows.sin + i * dim / 2;
      for (std::size_t d = dim; d < width; ++d) k[d] = 0.0f;
      AttentionTiles<Isa>::rotate(x, cos, sin, dim, scale_of_queries, nullptr, q);
      AttentionTiles<Isa>::rotate(x + rows.part, cos, sin, dim, 1.0f, nullptr, k);
      const float scale = row_scale(q, width);
      to.query_scales[i] = scale;
      store_row(q, width, scale, 128.0f, to.queries + i * width);
      for (std::size_t d = 0; d < width; d += kLanes) {
        const Float value = d + kLanes <= dim ? Isa::load_floats(x + 2 * rows.part + d) : Isa::load_some_floats(x + 2 * rows.part + d, d < dim ? dim - d : 0);
        Isa::store_floats(v + d, value);
        Isa::store_floats(channels.key_sums + d, Isa::add_floats(Isa::load_floats(channels.key_sums + d), Isa::load_floats(k + d)));
        Isa::store_floats(channels.value_sums + d, Isa::add_floats(Isa::load_floats(channels.value_sums + d), value));
        Isa::store_floats(channels.lowest + d, Isa::smaller(value, Isa::load_floats(channels.lowest + d)));
        Isa::store_floats(channels.highest + d, Isa::larger(value, Isa::load_floats(channels.highest + d)));
      }
    }
  }

  static void arrange_keys(const float* k, std::size_t count, std::size_t padded, std::size_t width, std::size_t words, const float* mean,
                           const ByteWindow& to) {
    alignas(64) std::uint8_t row[kLargestHead];
    alignas(64) float centred[kLargestHead];
    std::memset(to.keys + count / kKeyBlock * kKeyBlock * words * 4, 0, (padded - count / kKeyBlock * kKeyBlock) * words * 4);
    for (std::size_t i = 0; i < count; ++i) {
      for (std::size_t d = 0; d < width; d += kLanes)
        Isa::store_floats(centred + d, Isa::subtract(Isa::load_floats(k + i * width + d), Isa::load_floats(mean + d)));
      const float scale = row_scale(centred, width);
      store_row(centred, width, scale, 0.0f, row);
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
    for (std::size_t i = count; i < padded; ++i) {
      to.key_corrections[i] = -1;
      to.key_scales[i] = -kUnseen;
    }
  }

  static void arrange_values(const float* v, std::size_t count, std::size_t padded, std::size_t width, const Channels& channels,
                             const ByteWindow& to) {
    for (std::size_t column = 0; column < width; column += kLanes) {
      const Float mean = Isa::load_floats(to.value_means + column), zero = Isa::broadcast(0.0f);
      const Float above = Isa::subtract(Isa::load_floats(channels.highest + column), mean);
      const Float below = Isa::subtract(mean, Isa::load_floats(channels.lowest + column));
      alignas(64) std::int32_t peaks[kLanes];
      alignas(64) float inverses[kLanes];
      Isa::store_ints(peaks, Isa::larger(Isa::magnitude(above), Isa::magnitude(below)));
      for (std::size_t d = 0; d < kLanes; ++d) {
        to.value_scales[column + d] = scale_of(peaks[d]);
        inverses[d] = inverse(to.value_scales[column + d]);
      }
      const Float factor = Isa::load_floats(inverses);
      for (std::size_t i = 0; i < padded; i += 4) {
        Float quad[4];
        for (std::size_t n = 0; n < 4; ++n)
          quad[n] = i + n < count ? Isa::multiply(Isa::subtract(Isa::load_floats(v + (i + n) * width + column), mean), factor) : zero;
        const std::size_t block = i / kPacked * kPacked, place = Isa::place_of_quad(i % kPacked / 4);
        Isa::store_ints(reinterpret_cast<std::int32_t*>(to.values + (block + place * 4) * width + column * 4), Isa::quads(quad));
      }
    }
  }

  // `scratch` holds 2 [count][padded_dim] floats.
  static void arrange(const ByteRows& rows, const ByteWindow& to, float* scratch) {
    const std::size_t count = rows.count, width = padded_dim(rows.dim), words = byte_words(rows.dim);
    const std::size_t padded = (count + kSoftmaxBlock - 1) / kSoftmaxBlock * kSoftmaxBlock;
    float *const k = scratch, *const v = scratch + count * width;
    Channels channels;
    gather(rows, to, k, v, channels);
    const Float share = Isa::broadcast(1.0f / static_cast<float>(count));
    float* const key_means = channels.key_sums;
    for (std::size_t d = 0; d < width; d += kLanes) {
      Isa::store_floats(key_means + d, Isa::multiply(Isa::load_floats(channels.key_sums + d), share));
      Isa::store_floats(to.value_means + d, Isa::multiply(Isa::load_floats(channels.value_sums + d), share));
    }
    arrange_keys(k, count, padded, width, words, key_means, to);
    arrange_values(v, count, padded, width, channels, to);
    // A mean that is not finite spoils every key, and so every output.
    for (std::size_t d = 0; d < rows.dim; ++d)
      if (!(key_means[d] - key_means[d] == 0.0f)) to.value_means[0] = to.value_means[d] = __builtin_nanf("");
  }

  // Rows row .. row + M of the window by N vectors of positions; `highest` becomes the largest of each row's lanes so far.
  template <int M, int N>
  static void score(const ByteWindow& w, std::size_t row, std::size_t first, std::size_t words, float* scores, Float* highest) {
    Int sums[M][N];
    const std::int8_t* keys[N];
    each<N>([&](auto n) ECHOVLM_LAMBDA {
      const std::size_t at = first + n.value * kLanes;
      keys[n.value] = w.keys + at / kKeyBlock * kKeyBlock * words * 4 + at % kKeyBlock * 4;
    });
    each<N>([&](auto n) ECHOVLM_LAMBDA {
      const Int start = Isa::load_ints(w.key_corrections + first + n.value * kLanes);
      each<M>([&](auto m) ECHOVLM_LAMBDA { sums[m.value][n.value] = start; });
    });
    const std::uint8_t* query[M];
    each<M>([&](auto m) ECHOVLM_LAMBDA { query[m.value] = w.queries + (row + m.value) * padded_dim(words * 4); });
    for (std::size_t i = 0; i < words; ++i) {
      typename Isa::Bytes k[N];
      each<N>([&](auto n) ECHOVLM_LAMBDA { k[n.value] = Isa::load(keys[n.value] + i * kKeyBlock * 4); });
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto word = Isa::broadcast_word(reinterpret_cast<const std::int8_t*>(query[m.value]) + i * 4);
        each<N>([&](auto n) ECHOVLM_LAMBDA {
          sums[m.value][n.value] = Isa::template dot<8>(sums[m.value][n.value], word, k[n.value]);
        });
      });
    }
    each<N>([&](auto n) ECHOVLM_LAMBDA {
      const Float scale = Isa::load_floats(w.key_scales + first + n.value * kLanes);
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const Float score = Isa::multiply(Isa::to_float(sums[m.value][n.value]), scale);
        Isa::store_floats(scores + m.value * kByteBlock + n.value * kLanes, score);
        highest[m.value] = Isa::larger(highest[m.value], score);
      });
    });
  }

  // Rows that go through the positions together: what is done once a row and block is done for all of them in a vector.
  struct Group {
    alignas(64) float scores[kByteGroup * kByteBlock];
    alignas(64) std::uint8_t weights[kByteGroup * kByteBlock];
    alignas(64) float divisors[kByteGroup * kLanes];
    // Of each row: its query's scale; the largest score so far, and in this block; what is multiplied by the sums so far, and by the block's.
    alignas(64) float scales[kByteGroup], peaks[kByteGroup], of_block[kByteGroup], before[kByteGroup], now[kByteGroup];
  };

  // The scores of a block's positions, `some` of them; what lies between them and `padded` is unseen.
  template <int M>
  static void scores(const ByteWindow& w, std::size_t row, std::size_t first, std::size_t some, std::size_t padded, std::size_t words, float* scores,
                     float* largest) {
    Float highest[kRows];
    each<kRows>([&](auto m) ECHOVLM_LAMBDA { highest[m.value] = Isa::broadcast(kUnseen); });
    std::size_t at = 0;
    for (; at + kTilePositions <= some; at += kTilePositions) score<M, kKeyVectors>(w, row, first + at, words, scores + at, highest);
    for (; at < some; at += kLanes) score<M, 1>(w, row, first + at, words, scores + at, highest);
    for (; at < padded; at += kLanes)
      for (int m = 0; m < M; ++m) Isa::store_floats(scores + m * kByteBlock + at, Isa::broadcast(kUnseen));
    float four[kRows];
    Isa::largest_of_four(highest, four);
    for (int m = 0; m < M; ++m) largest[m] = four[m];
  }

  static void move_peaks(Group& group) {
    for (std::size_t i = 0; i < kByteGroup; i += kLanes) {
      const Float of_block = Isa::multiply(Isa::load_floats(group.of_block + i), Isa::load_floats(group.scales + i));
      const Float last = Isa::load_floats(group.peaks + i), peak = Isa::larger(of_block, last);
      Isa::store_floats(group.of_block + i, of_block);
      Isa::store_floats(group.peaks + i, peak);
      Isa::store_floats(group.before + i, AttentionTiles<Isa>::power_of_two(Isa::subtract(last, peak)));
      Isa::store_floats(group.now + i, AttentionTiles<Isa>::power_of_two(Isa::subtract(of_block, peak)));
    }
  }

  static void weigh(Group& group, std::size_t row, std::size_t padded) {
    const Float factor = Isa::broadcast(-Isa::fall_unit * group.scales[row]), shift = Isa::broadcast(Isa::fall_unit * group.of_block[row]);
    const float* const scores = group.scores + row * kByteBlock;
    Int sum = Isa::set_int(0);
    for (std::size_t i = 0; i < padded; i += kPacked) {
      Float falls[4];
      each<4>([&](auto n) ECHOVLM_LAMBDA { falls[n.value] = Isa::multiply_add(Isa::load_floats(scores + i + n.value * kLanes), factor, shift); });
      const auto bytes = Isa::byte_weights(falls);
      Isa::store(group.weights + row * kByteBlock + i, bytes);
      sum = Isa::template dot<8>(sum, bytes, Isa::set_bytes(1));
    }
    float* const divisor = group.divisors + row * kLanes;
    const Float old = Isa::multiply(Isa::load_floats(divisor), Isa::broadcast(group.before[row]));
    Isa::store_floats(divisor, Isa::multiply_add(Isa::to_float(sum), Isa::broadcast(group.now[row]), old));
  }

  // Rows row .. row + M of a group, N vectors of channels.
  template <int M, int N>
  static void add_values(const std::int8_t* values, std::size_t width, std::size_t positions, const Group& group, std::size_t row, float* sums) {
    Int block[M][N];
    each<M>([&](auto m) ECHOVLM_LAMBDA { each<N>([&](auto n) ECHOVLM_LAMBDA { block[m.value][n.value] = Isa::set_int(0); }); });
    const auto* const weights = reinterpret_cast<const std::int8_t*>(group.weights) + row * kByteBlock;
    const auto add = [&](std::size_t quad) ECHOVLM_LAMBDA {
      typename Isa::Bytes v[N];
      each<N>([&](auto n) ECHOVLM_LAMBDA { v[n.value] = Isa::load(values + quad * 4 * width + n.value * kLanes * 4); });
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto word = Isa::broadcast_word(weights + m.value * kByteBlock + quad * 4);
        each<N>([&](auto n) ECHOVLM_LAMBDA { block[m.value][n.value] = Isa::template dot<8>(block[m.value][n.value], word, v[n.value]); });
      });
    };
    const std::size_t whole = positions / kPacked * kPacked, last = positions - whole;
    for (std::size_t quad = 0; quad < whole / 4; ++quad) add(quad);
    // Of the last, partly seen vector of weights: the quads of the score vectors that are seen.
    for (std::size_t quad = whole / 4; last != 0 && quad < (whole + kPacked) / 4; ++quad)
      if (quad % 4 * kLanes < last) add(quad);
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      const Float old = Isa::broadcast(group.before[row + m.value]), added = Isa::broadcast(group.now[row + m.value]);
      each<N>([&](auto n) ECHOVLM_LAMBDA {
        float* const sum = sums + m.value * width + n.value * kLanes;
        Isa::store_floats(sum, Isa::multiply_add(Isa::to_float(block[m.value][n.value]), added, Isa::multiply(Isa::load_floats(sum), old)));
      });
    });
  }

  template <int M>
  static void add_values(const std::int8_t* values, std::size_t width, std::size_t positions, const Group& group, std::size_t row, float* sums) {
    std::size_t column = 0;
    for (; column + kValueVectors * kLanes <= width; column += kValueVectors * kLanes)
      add_values<M, kValueVectors>(values + column * 4, width, positions, group, row, sums + column);
    for (; column < width; column += kLanes) add_values<M, 1>(values + column * 4, width, positions, group, row, sums + column);
  }

  // Rows first .. first + count, up to kByteGroup of them, over all positions: `sums` [kByteGroup][padded_dim].
  static void attend_group(const ByteWindow& w, std::size_t positions, std::size_t dim, std::size_t first, std::size_t count, float* y,
                           std::size_t stride, float* sums) {
    const std::size_t width = padded_dim(dim), words = byte_words(dim), fours = count / kRows * kRows;
    Group group;
    std::memset(group.divisors, 0, sizeof group.divisors);
    std::memset(group.scales, 0, sizeof group.scales);
    std::memset(group.of_block, 0, sizeof group.of_block);
    std::memset(sums, 0, count * width * sizeof(float));
    std::memcpy(group.scales, w.query_scales + first, count * sizeof(float));
    for (float& peak : group.peaks) peak = -__builtin_inff();
    for (std::size_t at = 0; at < positions; at += kByteBlock) {
      const std::size_t some = positions - at < kByteBlock ? positions - at : kByteBlock;
      const std::size_t padded = (some + kPacked - 1) / kPacked * kPacked;
      std::size_t i = 0;
      for (; i < fours; i += kRows) scores<kRows>(w, first + i, at, some, padded, words, group.scores + i * kByteBlock, group.of_block + i);
      for (; i < count; ++i) scores<1>(w, first + i, at, some, padded, words, group.scores + i * kByteBlock, group.of_block + i);
      move_peaks(group);
      for (i = 0; i < count; ++i) weigh(group, i, padded);
      const std::int8_t* const values = w.values + at * width;
      for (i = 0; i < fours; i += kRows) add_values<kRows>(values, width, some, group, i, sums + i * width);
      for (; i < count; ++i) add_values<1>(values, width, some, group, i, sums + i * width);
    }
    for (std::size_t i = 0; i < count; ++i) {
      const float share = 1.0f / Isa::sum(Isa::load_floats(group.divisors + i * kLanes)) + 0.0f * group.scales[i];  // a row that holds NaN gives NaN
      float* __restrict const to = y + i * stride;
      const float* __restrict const from = sums + i * width;
      const float* __restrict const scales = w.value_scales;
      const float* __restrict const means = w.value_means;
      for (std::size_t d = 0; d < dim; ++d) to[d] = from[d] * share * scales[d] + means[d];
    }
  }

  // y [count][dim], `stride` apart: rows first .. first + count of the window.
  static void attend(const ByteWindow& w, std::size_t positions, std::size_t dim, std::size_t first, std::size_t count, float* y,
                     std::size_t stride, float* scratch) {
    for (std::size_t i = 0; i < count; i += kByteGroup)
      attend_group(w, positions, dim, first + i, count - i < kByteGroup ? count - i : kByteGroup, y + i * stride, stride, scratch);
  }

  static constexpr ByteAttentionKernels kTable{arrange, attend};
};

}  // namespace
}  // namespace echovlm
