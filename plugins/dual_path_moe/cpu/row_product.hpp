// Product for few tokens, row by row: each row of weights is read sequentially and multiplied by activations that were rearranged into
// the scratch memory first. A vector has 4 * lanes packed bytes of one row; lane i gets k = 8i .. 8i+7 (4 bits) or 4i .. 4i+3 (8 bits):
//
//   packed weights, 4 bits:   | lane 0: k .. k+7           | lane 1: k+8 .. k+15          | ... | lane lanes-1 |
//   unpacked, part 0 (low):   | k    k+2  k+4  k+6         | k+8  k+10  k+12  k+14        | ...                     times activations
//   unpacked, part 1 (high):  | k+1  k+3  k+5  k+7         | k+9  k+11  k+13  k+15        | ...                     in the same order
//
//   sum over k of w x  =  sum over blocks of  scale_w scale_x (stored . x)  +  scale_w (-zero scale_x sum(x))
//
// The second term needs only the weights' scales, so it is computed first, for a vector of blocks at a time, together with the products
// scale_w scale_x. Those are stored [token][block], or [block][token] if there are as many tokens as lanes.
//
// K is divided into equal stretches, short enough that the activations of Isa::row_tokens tokens fit half of the L1 cache; the sums
// are kept in the scratch memory between stretches. A pass with fewer tokens covers more stretches of a row before the next row.
//
// While the activations fit the L1 cache next to the weights, one row is read at a time, because a single stream gets the most
// bandwidth. With more activations, four rows are read at a time: activations then come from the L2 cache, where they queue behind
// weights from memory, and four rows share each load of activations.
#pragma once

#include "block_weights.hpp"
#include "rows_ahead.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct RowProduct {
  static constexpr std::size_t kBytes = 4 * Isa::lanes;
  static constexpr std::size_t kActivationBytes = 16 * 1024;  // for all tokens of a pass
  static constexpr std::size_t kBytesOfOneRow = 10 * 1024;
  static constexpr int kRowsAtOnce = 4;
  static constexpr std::size_t kRowsOfSums = 128;
  static constexpr std::size_t kScales = kActivationBytes / 16 + Isa::row_tokens * Isa::lanes;
  static constexpr std::size_t kScaleArrays = 2 + 2 * kRowsAtOnce;
  static constexpr std::size_t kSums = kRowsOfSums * Isa::row_tokens * Isa::lanes;
  static_assert(kActivationBytes + (kScaleArrays * kScales + kSums) * sizeof(float) <= kScratchBytes);

  template <int Bits>
  static constexpr std::size_t values_per_vector = kBytes * 8 / Bits;

  template <int M>
  static constexpr bool by_block = M == Isa::lanes;

  template <int M>
  static constexpr int stretches_of_pass = Isa::row_tokens / M;

  // A stretch of K for M tokens, in the scratch memory.
  struct Stretch {
    std::size_t first_byte, first_block;  // within a row of the weights
    std::size_t values, block, blocks, padded_blocks;
    std::uint8_t* x;  // [vector][token][part]
    float *x_scales, *corrections, *scales, *weight_scales;
  };

  template <int M>
  struct Pass {
    RowPart part;
    int count;
    bool first, last;  // whether it is the first or last pass over a row
    float* sums;       // [row][token][lane], kept between passes
    Stretch stretches[stretches_of_pass<M>];
  };

  template <int M>
  static ECHOVLM_INLINE std::size_t scale_place(const Stretch& x, std::size_t m, std::size_t block) {
    return by_block<M> ? block * M + m : m * x.padded_blocks + block;
  }

  // Prepares the `index`-th stretch of a pass.
  template <int Bits, int M>
  static Stretch prepare(const QuantizedTokens& x, const std::uint32_t* tokens, std::size_t k0, std::size_t values,
                         std::size_t block, int index, std::uint8_t* scratch) {
    constexpr std::size_t scales = kScales / stretches_of_pass<M>;
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    Stretch made{};
    made.first_byte = k0 * Bits / 8;
    made.first_block = k0 / block;
    made.values = values;
    made.block = block;
    made.blocks = values / block;
    made.padded_blocks = (made.blocks + Isa::lanes - 1) / Isa::lanes * Isa::lanes;
    made.x = scratch + index * (kActivationBytes / stretches_of_pass<M>);
    made.x_scales = reinterpret_cast<float*>(scratch + kActivationBytes) + index * scales;
    made.corrections = made.x_scales + kScales;
    made.scales = made.x_scales + 2 * kScales;
    made.weight_scales = made.scales + kRowsAtOnce * kScales;
    arrange_tokens<Isa, Bits, M>(x, tokens, k0, values, made.x);
    for (int m = 0; m < M; ++m) {
      const std::size_t first = tokens[m] * x.scale_stride + k0 / block;
      for (std::size_t b = 0; b < made.padded_blocks; ++b) {
        const bool there = b < made.blocks;
        made.x_scales[scale_place<M>(made, m, b)] = there ? x.scales[first + b] : 0.0f;
        made.corrections[m * made.padded_blocks + b] =
            there ? static_cast<float>(-zero * x.sums[first + b]) * x.scales[first + b] : 0.0f;
      }
    }
    return made;
  }

  // Loads a row's scales as floats, padded with zeros to a whole vector. Prefetches the scales of the next rows: a row cannot start
  // without its scales, and hardware prefetchers do not detect one or two cache lines per row.
  static ECHOVLM_INLINE void load_scales(const BlockWeights& w, std::size_t row, const Stretch& x, float* to) {
    const std::size_t at = row * w.scale_stride + x.first_block, width = w.half_scales ? 2 : 4;
    const std::uint8_t* ahead = static_cast<const std::uint8_t*>(w.scales) + (at + kRowsAtOnce * w.scale_stride) * width;
    ask_for(ahead, x.blocks * width);
    for (std::size_t b = 0; b < x.blocks; b += Isa::lanes) {
      const std::size_t left = x.blocks - b;
      Isa::store_floats(to + b, w.half_scales
                                    ? Isa::load_some_halves(static_cast<const std::uint16_t*>(w.scales) + at + b, left)
                                    : Isa::load_some_floats(static_cast<const float*>(w.scales) + at + b, left));
    }
  }

  // Computes scale_w * scale_x for one row and all tokens, for the `place`-th of the rows read together, and adds the zero-point
  // corrections to the sums.
  template <int Bits, int M>
  static ECHOVLM_INLINE void scale_row(const BlockWeights& w, std::size_t r, const Stretch& x, int place,
                                       typename Isa::Float (&sums)[M]) {
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    float *scales = x.scales + place * kScales, *weight_scales = x.weight_scales + place * kScales;
    load_scales(w, r, x, weight_scales);
    const auto multiply = [&](std::size_t at, auto scale) ECHOVLM_LAMBDA {
      Isa::store_floats(scales + at, Isa::multiply(scale, Isa::load_floats(x.x_scales + at)));
    };
    for (std::size_t b = 0; b < x.blocks && !(by_block<M> && zero == 0); b += Isa::lanes) {
      const auto scale = Isa::load_floats(weight_scales + b);
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const std::size_t at = m.value * x.padded_blocks + b;
        if constexpr (!by_block<M>) multiply(at, scale);
        if constexpr (zero != 0) sums[m.value] = Isa::multiply_add(scale, Isa::load_floats(x.corrections + at), sums[m.value]);
      });
    }
    if constexpr (by_block<M>)
      for (std::size_t b = 0; b < x.blocks; ++b) multiply(b * M, Isa::broadcast(weight_scales[b]));
  }

  // Multiplies a stretch of R rows from `r` on, where a block is V whole vectors: all lanes have the same scale. Structs are passed by
  // value: vector stores may alias anything, so the compiler would reload the fields of a reference at every step.
  template <int Bits, int R, int M, int V>
  static ECHOVLM_INLINE void wide_stretch(const BlockWeights& w, std::size_t r, const Stretch x, const RowPart part,
                                          typename Isa::Float (&sums)[R][M]) {
    constexpr int parts = Isa::template parts<Bits>;
    const std::uint8_t* weight = w.values + r * w.row_bytes + x.first_byte;
    const RowsAhead<Isa> ahead(w, part, r, R, x.first_byte - part.begin);
    each<R>([&](auto row) ECHOVLM_LAMBDA {
      scale_row<Bits, M>(w, r + row.value, x, row.value, sums[row.value]);
    });
    const std::uint8_t* values = x.x;
    std::size_t at = 0;
    for (std::size_t block = 0; block < x.blocks; ++block) {
      each<R>([&](auto row) ECHOVLM_LAMBDA {
        const std::uint8_t* from = weight + row.value * w.row_bytes + at;
        typename Isa::Bytes stored[V][parts];
        each<V>([&](auto v) ECHOVLM_LAMBDA {
          if constexpr (v.value * kBytes % 64 == 0) ahead.ask(row.value * w.row_bytes, at + v.value * kBytes);
          auto packed = Isa::load(from + v.value * kBytes);
          Isa::keep(packed);  // keeps it in a register: the compiler would load it again for each part
          Isa::template unpack<Bits>(packed, stored[v.value]);
        });
        each<M>([&](auto m) ECHOVLM_LAMBDA {
          auto partial = Isa::no_partial();
          each<V * parts>([&](auto h) ECHOVLM_LAMBDA {
            constexpr int v = h.value / parts, part = h.value % parts;
            partial = Isa::template partial_dot<Bits>(
                partial, stored[v][part], Isa::load(values + ((v * M + m.value) * parts + part) * kBytes));
          });
          const float* scale = x.scales + row.value * kScales + scale_place<M>(x, m.value, block);
          auto& sum = sums[row.value][m.value];
          sum = Isa::multiply_add(Isa::to_float(Isa::template whole<Bits>(partial)), Isa::broadcast(*scale), sum);
        });
      });
      values += V * M * parts * kBytes;
      at += V * kBytes;
    }
  }

  // Multiplies a stretch of a row where a vector spans several blocks: each lane gets its own block's scale.
  template <int Bits, int M>
  static ECHOVLM_INLINE void narrow_stretch(const BlockWeights& w, std::size_t r, const Stretch x, const RowPart part,
                                            typename Isa::Float (&sums)[M]) {
    constexpr std::size_t step = values_per_vector<Bits>;
    constexpr int parts = Isa::template parts<Bits>;
    const std::uint8_t* weight = w.values + r * w.row_bytes + x.first_byte;
    const RowsAhead<Isa> ahead(w, part, r, 1, x.first_byte - part.begin);
    scale_row<Bits, M>(w, r, x, 0, sums);
    const std::uint8_t* values = x.x;
    const std::size_t bytes = x.values * Bits / 8;
    for (std::size_t at = 0; at < bytes; at += kBytes) {
      const std::size_t some = bytes - at < kBytes ? bytes - at : kBytes;
      const std::size_t first = at * 8 / Bits / x.block, blocks = (some * 8 / Bits + x.block - 1) / x.block;
      ahead.ask(0, at);
      typename Isa::Bytes stored[parts];
      Isa::template unpack<Bits>(some == kBytes ? Isa::load(weight + at) : Isa::load_some(weight + at, some), stored);
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        auto partial = Isa::no_partial();
        each<parts>([&](auto part) ECHOVLM_LAMBDA {
          partial = Isa::template partial_dot<Bits>(partial, stored[part.value],
                                                    Isa::load(values + (m.value * parts + part.value) * kBytes));
        });
        const float* scales = x.scales + scale_place<M>(x, m.value, first);
        float gathered[Isa::lanes];
        if constexpr (by_block<M>) {
          for (std::size_t b = 0; b < blocks; ++b) gathered[b] = scales[b * M];
          scales = gathered;
        }
        const auto scale = Isa::spread(scales, blocks, x.block / (step / Isa::lanes));
        sums[m.value] = Isa::multiply_add(Isa::to_float(Isa::template whole<Bits>(partial)), scale, sums[m.value]);
      });
      values += M * parts * kBytes;
    }
  }

  // Runs a pass over R rows from `r` on; V is 0 if a block is narrower than a vector.
  template <int Bits, int R, int M, int V>
  static void pass_rows(const BlockWeights& w, std::size_t r, const Pass<M>& pass, float* const* out) {
    typename Isa::Float sums[R][M];
    const auto each_sum = [&](auto body) ECHOVLM_LAMBDA {
      each<R>([&](auto row) ECHOVLM_LAMBDA {
        each<M>([&](auto m) ECHOVLM_LAMBDA {
          body(sums[row.value][m.value], pass.sums + ((r + row.value) * M + m.value) * Isa::lanes, out[m.value] + r + row.value);
        });
      });
    };
    if (pass.first)
      each_sum([](auto& sum, float*, float*) ECHOVLM_LAMBDA { sum = Isa::broadcast(0.0f); });
    else
      each_sum([](auto& sum, float* kept, float*) ECHOVLM_LAMBDA { sum = Isa::load_floats(kept); });
    for (int i = 0; i < pass.count; ++i) {
      if constexpr (V == 0)
        narrow_stretch<Bits, M>(w, r, pass.stretches[i], pass.part, sums[0]);
      else
        wide_stretch<Bits, R, M, V>(w, r, pass.stretches[i], pass.part, sums);
    }
    if (pass.last)
      each_sum([](auto& sum, float*, float* result) ECHOVLM_LAMBDA { *result += Isa::sum(sum); });
    else
      each_sum([](auto& sum, float* kept, float*) ECHOVLM_LAMBDA { Isa::store_floats(kept, sum); });
  }

  template <int Bits, int M, int V>
  static void all_rows(const BlockWeights& w, const Pass<M>& pass, float* const* out) {
    std::size_t r = 0;
    if constexpr (M <= 2 && V > 0) {
      if (pass.part.bytes * Isa::template parts<Bits> * M > kBytesOfOneRow)
        for (; r + kRowsAtOnce <= w.rows; r += kRowsAtOnce) pass_rows<Bits, kRowsAtOnce, M, V>(w, r, pass, out);
    }
    for (; r < w.rows; ++r) pass_rows<Bits, 1, M, V>(w, r, pass, out);
  }

  template <int Bits, int M>
  static void tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, std::size_t i,
                     const Accumulator& c, std::uint8_t* scratch) {
    constexpr std::size_t step = values_per_vector<Bits>, longest = 128 / step;  // vectors of the largest block
    constexpr std::size_t most = kActivationBytes * 8 / (Isa::row_tokens * Isa::template parts<Bits> * Bits);
    constexpr std::size_t unit = 128 * Isa::lanes;  // a stretch has whole vectors of block scales
    const std::size_t stretches = (w.k + most - 1) / most;
    const std::size_t even = ((w.k + stretches - 1) / stretches + unit - 1) / unit * unit;
    static_assert(most % unit == 0);
    float* out[M];
    for (int m = 0; m < M; ++m) out[m] = c.values + accumulator_row(list, i + m) * c.stride;
    Pass<M> pass{};
    pass.sums = reinterpret_cast<float*>(scratch + kActivationBytes) + kScaleArrays * kScales;
    for (std::size_t k0 = 0; k0 < w.k;) {
      pass.first = k0 == 0;
      const std::size_t begin = k0 * Bits / 8;
      for (pass.count = 0; k0 < w.k && pass.count < stretches_of_pass<M>; ++pass.count) {
        const std::size_t values = w.k - k0 < even ? w.k - k0 : even;
        pass.stretches[pass.count] = prepare<Bits, M>(x, list.tokens + i, k0, values, w.block, pass.count, scratch);
        k0 += values;
      }
      pass.last = k0 == w.k;
      pass.part = RowPart(w, begin, k0 * Bits / 8 - begin, Isa::prefetch_bytes);
      if (w.block < step)
        all_rows<Bits, M, 0>(w, pass, out);
      else if (w.block == step)
        all_rows<Bits, M, 1>(w, pass, out);
      else if (w.block == 2 * step)
        all_rows<Bits, M, longest >= 2 ? 2 : 1>(w, pass, out);
      else if (w.block == 4 * step)
        all_rows<Bits, M, longest >= 4 ? 4 : 1>(w, pass, out);
      else
        all_rows<Bits, M, longest >= 8 ? 8 : 1>(w, pass, out);
    }
  }

  template <int Bits>
  static void all_tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                         std::uint8_t* scratch) {
    std::size_t i = 0;
    if constexpr (Isa::row_tokens >= 8)
      for (; i + 8 <= list.count; i += 8) tokens<Bits, 8>(w, x, list, i, c, scratch);
    if constexpr (Isa::few_tokens >= 4)
      for (; i + 4 <= list.count; i += 4) tokens<Bits, 4>(w, x, list, i, c, scratch);
    if (i + 3 == list.count) return tokens<Bits, 3>(w, x, list, i, c, scratch);
    for (; i + 2 <= list.count; i += 2) tokens<Bits, 2>(w, x, list, i, c, scratch);
    for (; i < list.count; ++i) tokens<Bits, 1>(w, x, list, i, c, scratch);
  }

  template <int Bits>
  static void run(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                  std::uint8_t* scratch) {
    each_rows(w, c, kRowsOfSums, [&](const BlockWeights& some, const Accumulator& to) {
      all_tokens<Bits>(some, x, list, to, scratch);
    });
  }
};

}  // namespace
}  // namespace echovlm
