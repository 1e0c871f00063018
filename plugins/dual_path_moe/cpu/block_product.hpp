// The product of block-wise quantized weights with int8 activations, over an instruction set `Isa`.
//
// Two ways through the same bytes, chosen by the number of tokens:
//
//   rows   few tokens: weights stream once, straight from memory, row by row; a vector holds 4 * lanes packed bytes
//          of one row, so lane i meets k = 8i .. 8i+7 (4 bits) or 4i .. 4i+3 (8 bits).
//   panel  many tokens: lanes * panel_vectors rows by one chunk of K are unpacked once into the first-level cache and
//          serve every token (tile_panel.hpp).
//
// Either way int32 sums live for one block of K, then are scaled to float32: block sums are exact, and the float sums run
// over blocks in the same order whatever the number of threads.
//
// Products take weights as stored, q + zero; the correction -zero * (sum of activations) is where the sums begin.
#pragma once

#include "float_product.hpp"
#include "kernels.hpp"

namespace echovlm {
namespace {

constexpr std::size_t kAnyNumber = ~std::size_t{0};  // of tokens, for Isa::few_tokens

// How rows are multiplied where one instruction sums four products into 32 bits: packed bytes as Isa::dot takes them.
template <class Isa>
struct WholeDots {
  static constexpr int sums_in_flight = 12;  // that hide the instruction's latency

  template <int Bits>
  static constexpr int parts = Bits == 4 ? 2 : 1;

  template <int Bits, class Bytes>
  static void unpack(Bytes packed, Bytes (&stored)[parts<Bits>]) {
    if constexpr (Bits == 4) {
      stored[0] = Isa::low(packed);
      stored[1] = Isa::high(packed);
    } else {
      stored[0] = Isa::stored8(packed);
    }
  }
  template <int Bits, class Bytes>
  static void arrange(const std::int8_t* from, std::size_t valid, Bytes (&x)[parts<Bits>]) {
    if constexpr (Bits == 4)
      Isa::load_even_odd(from, valid, x[0], x[1]);
    else
      x[0] = Isa::load_some(from, valid);
  }
  static auto no_partial() { return Isa::set_int(0); }
  template <int Bits, class Int, class Bytes>
  static Int partial_dot(Int sum, Bytes weight, Bytes x) {
    return Isa::template dot<Bits>(sum, weight, x);
  }
  template <int Bits, class Int>
  static Int whole(Int sum) {
    return sum;
  }
};

inline std::size_t accumulator_row(const TokenList& list, std::size_t i) {
  return list.by_token ? list.tokens[i] - list.first : i;
}

// Rows read in straight lines against a few tokens whose activations lie ready in the scratch, in the vectors that a vector of
// packed weights unpacks to (Isa::parts: 4 bits give low and high nibbles).
//
//   sum over k of w x  =  sum over blocks of  scale_w scale_x (stored . x)  +  scale_w (-zero scale_x sum(x))
//
// The second part needs no weight but its scales: it is a short product of its own, a vector of blocks at a time. So are the
// products of scales, which lie token by token, but block by block where there are as many tokens as lanes.
//
// One row at a time while the activations fit the first-level cache beside the stream: one stream is what memory answers
// fastest. Four rows at a time beyond, because activations that come back from the second level wait behind the weights
// that come from memory, and four rows share that way.
template <class Isa>
struct RowProduct {
  static constexpr std::size_t kBytes = 4 * Isa::lanes;
  static constexpr std::size_t kActivationBytes = 16 * 1024;  // of all tokens of a tile: half of a first-level cache
  static constexpr std::size_t kBytesOfOneRow = 10 * 1024;
  static constexpr int kRowsAtOnce = 4;
  static constexpr std::size_t kScales = kActivationBytes / 16 + Isa::row_tokens * Isa::lanes;
  static_assert(kActivationBytes + (2 + 2 * kRowsAtOnce) * kScales * sizeof(float) <= kScratchBytes);

  template <int Bits>
  static constexpr std::size_t values_per_vector = kBytes * 8 / Bits;

  template <int M>
  static constexpr bool by_block = M == Isa::lanes;

  // A stretch of K for M tokens, in the scratch.
  struct Stretch {
    std::size_t values, block, blocks, padded_blocks;
    std::size_t ahead_rows, ahead_bytes;  // from a place in a row to what is asked for there: rows on, and bytes in that one
    std::uint8_t* x;                      // by vector and token
    float *x_scales, *corrections, *scales, *widened;
  };

  template <int M>
  static ECHOVLM_INLINE std::size_t scale_place(const Stretch& x, std::size_t m, std::size_t block) {
    return by_block<M> ? block * M + m : m * x.padded_blocks + block;
  }

  template <int Bits, int M>
  static Stretch prepare(const QuantizedTokens& x, const std::uint32_t* tokens, std::size_t k0, std::size_t values,
                         std::size_t block, std::uint8_t* scratch) {
    constexpr std::size_t step = values_per_vector<Bits>;
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    Stretch made{};
    made.values = values;
    made.block = block;
    made.blocks = values / block;
    made.padded_blocks = (made.blocks + Isa::lanes - 1) / Isa::lanes * Isa::lanes;
    made.ahead_rows = Isa::prefetch_bytes / (values * Bits / 8);
    made.ahead_bytes = Isa::prefetch_bytes % (values * Bits / 8);
    made.x = scratch;
    made.x_scales = reinterpret_cast<float*>(scratch + kActivationBytes);
    made.corrections = made.x_scales + kScales;
    made.scales = made.corrections + kScales;
    made.widened = made.scales + kRowsAtOnce * kScales;
    std::uint8_t* to = scratch;
    for (std::size_t k = 0; k < values; k += step) {
      const std::size_t valid = values - k < step ? values - k : step;
      for (int m = 0; m < M; ++m) {
        typename Isa::Bytes parts[Isa::template parts<Bits>];
        Isa::template arrange<Bits>(x.values + tokens[m] * x.stride + k0 + k, valid, parts);
        for (const auto& part : parts) {
          Isa::store(to, part);
          to += kBytes;
        }
      }
    }
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

  static const float* block_scales(const BlockWeights& w, std::size_t row, std::size_t k0, const Stretch& x, float* widened) {
    const std::size_t at = row * w.scale_stride + k0 / w.block;
    if (!w.half_scales) return static_cast<const float*>(w.scales) + at;
    widen_half(static_cast<const std::uint16_t*>(w.scales) + at, x.blocks, widened);
    return widened;
  }

  // The products of a row's scales with the tokens'; the sums begin with the row's corrections.
  template <int Bits, int M>
  static ECHOVLM_INLINE void begin_row(const float* weight_scales, const Stretch& x, float* scales,
                                       typename Isa::Float (&sums)[M]) {
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    const auto multiply = [&](std::size_t at, auto scale) ECHOVLM_LAMBDA {
      Isa::store_floats(scales + at, Isa::multiply(scale, Isa::load_floats(x.x_scales + at)));
    };
    each<M>([&](auto m) ECHOVLM_LAMBDA { sums[m.value] = Isa::broadcast(0.0f); });
    for (std::size_t b = 0; b < x.blocks && !(by_block<M> && zero == 0); b += Isa::lanes) {
      const std::size_t left = x.blocks - b;
      const auto scale =
          left >= Isa::lanes ? Isa::load_floats(weight_scales + b) : Isa::load_some_floats(weight_scales + b, left);
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const std::size_t at = m.value * x.padded_blocks + b;
        if constexpr (!by_block<M>) multiply(at, scale);
        if constexpr (zero != 0) sums[m.value] = Isa::multiply_add(scale, Isa::load_floats(x.corrections + at), sums[m.value]);
      });
    }
    if constexpr (by_block<M>)
      for (std::size_t b = 0; b < x.blocks; ++b) multiply(b * M, Isa::broadcast(weight_scales[b]));
  }

  template <int M>
  static ECHOVLM_INLINE void end_row(float* const* out, std::size_t r, const typename Isa::Float (&sums)[M]) {
    each<M>([&](auto m) ECHOVLM_LAMBDA { out[m.value][r] += Isa::sum(sums[m.value]); });
  }

  // Asks for what is read Isa::prefetch_bytes later: past the stretch's end comes its part of the row that follows the `rows`
  // read together.
  static ECHOVLM_INLINE void prefetch(const BlockWeights& w, const Stretch& x, const std::uint8_t* weight, std::size_t at,
                                      std::size_t bytes, std::size_t rows) {
    const std::size_t ahead = at + x.ahead_bytes;
    const std::size_t past = ahead < bytes ? 0 : 1;
    __builtin_prefetch(weight + ahead - past * bytes + (x.ahead_rows + past) * rows * w.row_bytes, 0, 0);
  }

  // R rows from `r` on, a block of V vectors at a time: one scale serves all their lanes. The stretch comes by value: vectors
  // that are stored may alias anything, so that behind a reference its fields would be read again at every step.
  template <int Bits, int R, int M, int V>
  static void wide_rows(const BlockWeights& w, std::size_t r, std::size_t k0, const Stretch x, float* const* out) {
    constexpr int parts = Isa::template parts<Bits>;
    const std::uint8_t* weight = w.values + r * w.row_bytes + k0 * Bits / 8;
    typename Isa::Float sums[R][M];
    each<R>([&](auto row) ECHOVLM_LAMBDA {
      const float* weight_scales = block_scales(w, r + row.value, k0, x, x.widened + row.value * kScales);
      begin_row<Bits, M>(weight_scales, x, x.scales + row.value * kScales, sums[row.value]);
    });
    const std::uint8_t* values = x.x;
    const std::size_t bytes = x.values * Bits / 8;
    std::size_t at = 0;
    for (std::size_t block = 0; block < x.blocks; ++block) {
      each<R>([&](auto row) ECHOVLM_LAMBDA {
        const std::uint8_t* from = weight + row.value * w.row_bytes + at;
        typename Isa::Bytes stored[V][parts];
        each<V>([&](auto v) ECHOVLM_LAMBDA {
          if constexpr (v.value * kBytes % 64 == 0) prefetch(w, x, from - at, at + v.value * kBytes, bytes, R);
          auto packed = Isa::load(from + v.value * kBytes);
          Isa::keep(packed);  // or it is read again for each part
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
    each<R>([&](auto row) ECHOVLM_LAMBDA { end_row<M>(out, r + row.value, sums[row.value]); });
  }

  // A row where a vector holds several blocks: each lane has its block's scale.
  template <int Bits, int M>
  static void narrow_row(const BlockWeights& w, std::size_t r, std::size_t k0, const Stretch x, float* const* out) {
    constexpr std::size_t step = values_per_vector<Bits>;
    constexpr int parts = Isa::template parts<Bits>;
    const std::uint8_t* weight = w.values + r * w.row_bytes + k0 * Bits / 8;
    typename Isa::Float sums[M];
    begin_row<Bits, M>(block_scales(w, r, k0, x, x.widened), x, x.scales, sums);
    const std::uint8_t* values = x.x;
    const std::size_t bytes = x.values * Bits / 8;
    for (std::size_t at = 0; at < bytes; at += kBytes) {
      const std::size_t some = bytes - at < kBytes ? bytes - at : kBytes;
      const std::size_t first = at * 8 / Bits / x.block, blocks = (some * 8 / Bits + x.block - 1) / x.block;
      prefetch(w, x, weight, at, bytes, 1);
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
    end_row<M>(out, r, sums);
  }

  template <int Bits, int M, int V>
  static void wide(const BlockWeights& w, std::size_t k0, const Stretch& x, float* const* out) {
    std::size_t r = 0;
    if constexpr (M <= 2) {
      if (x.values * Isa::template parts<Bits> * Bits * M / 8 > kBytesOfOneRow)
        for (; r + kRowsAtOnce <= w.rows; r += kRowsAtOnce) wide_rows<Bits, kRowsAtOnce, M, V>(w, r, k0, x, out);
    }
    for (; r < w.rows; ++r) wide_rows<Bits, 1, M, V>(w, r, k0, x, out);
  }

  template <int Bits, int M>
  static void tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, std::size_t i,
                     const Accumulator& c, std::uint8_t* scratch) {
    constexpr std::size_t step = values_per_vector<Bits>;
    constexpr std::size_t most = kActivationBytes * 8 / (M * Isa::template parts<Bits> * Bits);
    const std::size_t stretches = (w.k + most - 1) / most;
    const std::size_t even = ((w.k + stretches - 1) / stretches + 127) / 128 * 128;  // whole blocks
    float* out[M];
    for (int m = 0; m < M; ++m) out[m] = c.values + accumulator_row(list, i + m) * c.stride;
    for (std::size_t k0 = 0; k0 < w.k; k0 += even) {
      const std::size_t values = w.k - k0 < even ? w.k - k0 : even;
      const Stretch stretch = prepare<Bits, M>(x, list.tokens + i, k0, values, w.block, scratch);
      if (w.block < step)
        for (std::size_t r = 0; r < w.rows; ++r) narrow_row<Bits, M>(w, r, k0, stretch, out);
      else if (w.block == step)
        wide<Bits, M, 1>(w, k0, stretch, out);
      else if (2 * step <= 128 && w.block == 2 * step)
        wide<Bits, M, 2 * step <= 128 ? 2 : 1>(w, k0, stretch, out);
      else if (4 * step <= 128 && w.block == 4 * step)
        wide<Bits, M, 4 * step <= 128 ? 4 : 1>(w, k0, stretch, out);
      else
        wide<Bits, M, 8 * step <= 128 ? 8 : 1>(w, k0, stretch, out);
    }
  }

  template <int Bits>
  static void run(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                  std::uint8_t* scratch) {
    std::size_t i = 0;
    if constexpr (Isa::row_tokens >= 8)
      for (; i + 8 <= list.count; i += 8) tokens<Bits, 8>(w, x, list, i, c, scratch);
    for (; i + 4 <= list.count; i += 4) tokens<Bits, 4>(w, x, list, i, c, scratch);
    for (; i + 2 <= list.count; i += 2) tokens<Bits, 2>(w, x, list, i, c, scratch);
    for (; i < list.count; ++i) tokens<Bits, 1>(w, x, list, i, c, scratch);
  }
};

template <class Panel>
void panel_product(const BlockWeights&, const QuantizedTokens&, const TokenList&, const Accumulator&, std::uint8_t*);

template <class Isa, class Panel>
void block_product(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                   std::uint8_t* scratch) {
  if constexpr (Isa::few_tokens != kAnyNumber) {
    if (list.count > Isa::few_tokens) return panel_product<Panel>(w, x, list, c, scratch);
  }
  if (w.bits == 4)
    RowProduct<Isa>::template run<4>(w, x, list, c, scratch);
  else
    RowProduct<Isa>::template run<8>(w, x, list, c, scratch);
}

}  // namespace
}  // namespace echovlm
