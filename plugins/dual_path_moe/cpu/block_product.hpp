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
// Isa::dot takes weights as stored, q + zero; the correction -zero * (sum of activations) is where the sums begin.
#pragma once

#include "float_product.hpp"
#include "kernels.hpp"

namespace echovlm {
namespace {

inline std::size_t accumulator_row(const TokenList& list, std::size_t i) {
  return list.by_token ? list.tokens[i] - list.first : i;
}

// Rows read in straight lines against up to four tokens whose activations lie ready in the scratch: per vector of weights,
// those that meet its low nibbles and those that meet its high ones.
//
//   sum over k of w x  =  sum over blocks of  scale_w scale_x (stored . x)  +  scale_w (-zero scale_x sum(x))
//
// The second part needs no weight but its scales: it is a short product of its own, a vector of blocks at a time.
//
// One row at a time while the activations fit the first-level cache beside the stream: one stream is what memory answers
// fastest. Four rows at a time beyond, because activations that come back from the second level wait behind the weights
// that come from memory, and four rows share that way.
template <class Isa>
struct RowProduct {
  static constexpr std::size_t kBytes = 4 * Isa::lanes;
  static constexpr std::size_t kValuesAtOnce = 32 * 1024;  // activations, of all tokens of a tile
  static constexpr std::size_t kValuesOfOneRow = 10 * 1024;
  static constexpr int kRowsAtOnce = 4;
  static constexpr std::size_t kScalesAtOnce = kValuesAtOnce / 16 + 4 * Isa::lanes;
  static_assert(kValuesAtOnce + (2 + 2 * kRowsAtOnce) * kScalesAtOnce * sizeof(float) <= kScratchBytes);

  template <int Bits>
  static constexpr std::size_t values_per_vector() {
    return kBytes * 8 / Bits;
  }

  // A stretch of K for M tokens, in the scratch: values by vector and token, the rest by token.
  struct Stretch {
    std::size_t values, block, blocks, padded_blocks;
    std::uint8_t* x;
    float *x_scales, *corrections, *scales, *widened;
  };

  template <int Bits, int M>
  static Stretch prepare(const QuantizedTokens& x, const std::uint32_t* tokens, std::size_t k0, std::size_t values,
                         std::size_t block, std::uint8_t* scratch) {
    constexpr std::size_t step = values_per_vector<Bits>();
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    Stretch made{};
    made.values = values;
    made.block = block;
    made.blocks = values / block;
    made.padded_blocks = (made.blocks + Isa::lanes - 1) / Isa::lanes * Isa::lanes;
    made.x = scratch;
    made.x_scales = reinterpret_cast<float*>(scratch + kValuesAtOnce);
    made.corrections = made.x_scales + kScalesAtOnce;
    made.scales = made.corrections + kScalesAtOnce;
    made.widened = made.scales + kRowsAtOnce * kScalesAtOnce;
    std::uint8_t* to = scratch;
    for (std::size_t k = 0; k < values; k += step) {
      const std::size_t valid = values - k < step ? values - k : step;
      for (int m = 0; m < M; ++m, to += step) {
        const std::int8_t* from = x.values + tokens[m] * x.stride + k0 + k;
        if constexpr (Bits == 4) {
          typename Isa::Bytes even, odd;
          Isa::load_even_odd(from, valid, even, odd);
          Isa::store(to, even);
          Isa::store(to + kBytes, odd);
        } else {
          Isa::store(to, Isa::load_some(from, valid));
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      const std::size_t first = tokens[m] * x.scale_stride + k0 / block;
      for (std::size_t b = 0; b < made.padded_blocks; ++b) {
        const bool there = b < made.blocks;
        made.x_scales[m * made.padded_blocks + b] = there ? x.scales[first + b] : 0.0f;
        made.corrections[m * made.padded_blocks + b] =
            there ? static_cast<float>(-zero * x.sums[first + b]) * x.scales[first + b] : 0.0f;
      }
    }
    return made;
  }

  // Puts the scales of R rows with M tokens ready, and begins the sums with the corrections.
  template <int Bits, int R, int M>
  static ECHOVLM_INLINE void begin_rows(const BlockWeights& w, std::size_t r, std::size_t k0, const Stretch& x,
                                        typename Isa::Float (&sums)[R][M]) {
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    each<R>([&](auto row) ECHOVLM_LAMBDA {
      const float* weight_scales = block_scales(w, r + row.value, k0, x, x.widened + row.value * kScalesAtOnce);
      each<M>([&](auto m) ECHOVLM_LAMBDA { sums[row.value][m.value] = Isa::broadcast(0.0f); });
      for (std::size_t b = 0; b < x.blocks; b += Isa::lanes) {
        const std::size_t left = x.blocks - b;
        const auto scale =
            left >= Isa::lanes ? Isa::load_floats(weight_scales + b) : Isa::load_some_floats(weight_scales + b, left);
        each<M>([&](auto m) ECHOVLM_LAMBDA {
          const std::size_t at = m.value * x.padded_blocks + b;
          Isa::store_floats(x.scales + row.value * kScalesAtOnce + at, Isa::multiply(scale, Isa::load_floats(x.x_scales + at)));
          auto& sum = sums[row.value][m.value];
          if constexpr (zero != 0) sum = Isa::multiply_add(scale, Isa::load_floats(x.corrections + at), sum);
        });
      }
    });
  }

  template <int R, int M>
  static ECHOVLM_INLINE void end_rows(const TokenList& list, std::size_t i, const Accumulator& c, std::size_t r,
                                      const typename Isa::Float (&sums)[R][M]) {
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      float* out = c.values + accumulator_row(list, i + m.value) * c.stride + r;
      each<R>([&](auto row) ECHOVLM_LAMBDA { out[row.value] += Isa::sum(sums[row.value][m.value]); });
    });
  }

  // Past the stretch's end comes its part of the row that follows the `rows` read together.
  static ECHOVLM_INLINE void prefetch(const BlockWeights& w, const std::uint8_t* weight, std::size_t at, std::size_t bytes,
                                      std::size_t rows) {
    const std::size_t ahead = at + Isa::prefetch_bytes;
    __builtin_prefetch(weight + ahead + (ahead < bytes ? 0 : rows * w.row_bytes - bytes), 0, 0);
  }

  // R rows from `r` on, in steps of V vectors that share a block: one scale serves all their lanes.
  template <int Bits, int R, int M, int V>
  static void wide_rows(const BlockWeights& w, std::size_t r, std::size_t k0, const Stretch& x, const TokenList& list,
                        std::size_t i, const Accumulator& c) {
    constexpr std::size_t step = values_per_vector<Bits>();
    constexpr int halves = Bits == 4 ? 2 : 1;
    const std::uint8_t* weight = w.values + r * w.row_bytes + k0 * Bits / 8;
    typename Isa::Float sums[R][M];
    begin_rows<Bits, R, M>(w, r, k0, x, sums);
    const std::uint8_t* values = x.x;
    const std::size_t bytes = x.values * Bits / 8, steps_of_block = x.block / (V * step);
    std::size_t at = 0;
    for (std::size_t block = 0; block < x.blocks; ++block) {
      for (std::size_t s = 0; s < steps_of_block; ++s) {
        each<R>([&](auto row) ECHOVLM_LAMBDA {
          typename Isa::Weight stored[V * halves];
          each<V>([&](auto v) ECHOVLM_LAMBDA {
            prefetch(w, weight + row.value * w.row_bytes, at + v.value * kBytes, bytes, R);
            const typename Isa::Bytes packed = Isa::load(weight + row.value * w.row_bytes + at + v.value * kBytes);
            if constexpr (Bits == 4) {
              stored[2 * v.value] = Isa::template weight<4>(Isa::low(packed));
              stored[2 * v.value + 1] = Isa::template weight<4>(Isa::high(packed));
            } else {
              stored[v.value] = Isa::template weight<8>(Isa::stored8(packed));
            }
          });
          each<M>([&](auto m) ECHOVLM_LAMBDA {
            auto partial = Isa::no_partial();
            each<V * halves>([&](auto h) ECHOVLM_LAMBDA {
              constexpr int v = h.value / halves, half = h.value % halves;
              partial = Isa::template partial_dot<Bits>(partial, stored[h.value],
                                                        Isa::load(values + v * M * step + m.value * step + half * kBytes));
            });
            const float* scale = x.scales + row.value * kScalesAtOnce + m.value * x.padded_blocks + block;
            auto& sum = sums[row.value][m.value];
            sum = Isa::multiply_add(Isa::to_float(Isa::template whole<Bits>(partial)), Isa::broadcast(*scale), sum);
          });
        });
        values += V * M * step;
        at += V * kBytes;
      }
    }
    end_rows<R, M>(list, i, c, r, sums);
  }

  // A row where a vector holds several blocks: each lane has its block's scale.
  template <int Bits, int M>
  static void narrow_row(const BlockWeights& w, std::size_t r, std::size_t k0, const Stretch& x, const TokenList& list,
                         std::size_t i, const Accumulator& c) {
    constexpr std::size_t step = values_per_vector<Bits>();
    const std::uint8_t* weight = w.values + r * w.row_bytes + k0 * Bits / 8;
    typename Isa::Float sums[1][M];
    begin_rows<Bits, 1, M>(w, r, k0, x, sums);
    const std::uint8_t* values = x.x;
    const std::size_t bytes = x.values * Bits / 8;
    for (std::size_t at = 0; at < bytes; at += kBytes) {
      const std::size_t some = bytes - at < kBytes ? bytes - at : kBytes, k = at * 8 / Bits;
      prefetch(w, weight, at, bytes, 1);
      const typename Isa::Bytes packed = some == kBytes ? Isa::load(weight + at) : Isa::load_some(weight + at, some);
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const std::uint8_t* p = values + m.value * step;
        typename Isa::Int sum = Isa::set_int(0);
        if constexpr (Bits == 4) {
          sum = Isa::template dot<4>(sum, Isa::low(packed), Isa::load(p));
          sum = Isa::template dot<4>(sum, Isa::high(packed), Isa::load(p + kBytes));
        } else {
          sum = Isa::template dot<8>(sum, Isa::stored8(packed), Isa::load(p));
        }
        const std::size_t blocks = (some * 8 / Bits + x.block - 1) / x.block;
        const auto scale = Isa::spread(x.scales + m.value * x.padded_blocks + k / x.block, blocks, x.block / (step / Isa::lanes));
        sums[0][m.value] = Isa::multiply_add(Isa::to_float(sum), scale, sums[0][m.value]);
      });
      values += M * step;
    }
    end_rows<1, M>(list, i, c, r, sums);
  }

  static const float* block_scales(const BlockWeights& w, std::size_t row, std::size_t k0, const Stretch& x, float* widened) {
    const std::size_t at = row * w.scale_stride + k0 / w.block;
    if (!w.half_scales) return static_cast<const float*>(w.scales) + at;
    widen_half(static_cast<const std::uint16_t*>(w.scales) + at, x.blocks, widened);
    return widened;
  }

  template <int Bits, int M>
  static void tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, std::size_t i,
                     const Accumulator& c, std::uint8_t* scratch) {
    constexpr std::size_t most = kValuesAtOnce / M;
    constexpr int together = M <= 2 ? kRowsAtOnce : 1;
    const std::size_t stretches = (w.k + most - 1) / most;
    const std::size_t even = ((w.k + stretches - 1) / stretches + 127) / 128 * 128;  // whole blocks
    const std::size_t vectors = w.block / values_per_vector<Bits>();  // of a block; 0 where a vector holds several
    for (std::size_t k0 = 0; k0 < w.k; k0 += even) {
      const std::size_t values = w.k - k0 < even ? w.k - k0 : even;
      const Stretch stretch = prepare<Bits, M>(x, list.tokens + i, k0, values, w.block, scratch);
      std::size_t r = 0;
      if (vectors == 0) {
        for (; r < w.rows; ++r) narrow_row<Bits, M>(w, r, k0, stretch, list, i, c);
      } else if (vectors % 2 == 0) {
        if (values * M > kValuesOfOneRow)
          for (; r + together <= w.rows; r += together) wide_rows<Bits, together, M, 2>(w, r, k0, stretch, list, i, c);
        for (; r < w.rows; ++r) wide_rows<Bits, 1, M, 2>(w, r, k0, stretch, list, i, c);
      } else {
        if (values * M > kValuesOfOneRow)
          for (; r + together <= w.rows; r += together) wide_rows<Bits, together, M, 1>(w, r, k0, stretch, list, i, c);
        for (; r < w.rows; ++r) wide_rows<Bits, 1, M, 1>(w, r, k0, stretch, list, i, c);
      }
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
  if (list.count > Isa::few_tokens)
    panel_product<Panel>(w, x, list, c, scratch);
  else if (w.bits == 4)
    RowProduct<Isa>::template run<4>(w, x, list, c, scratch);
  else
    RowProduct<Isa>::template run<8>(w, x, list, c, scratch);
}

}  // namespace
}  // namespace echovlm
