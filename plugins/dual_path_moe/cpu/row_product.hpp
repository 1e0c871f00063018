// Few tokens: rows are multiplied as they are read, as many at a time as a vector of floats has lanes. A vector holds 4 * lanes packed
// bytes of one row, against the activations of the same k, which lie ready in the vectors that it unpacks to (Isa::parts: 4 bits give low
// and high nibbles). Two rows are taken together: one load of activations serves both.
//
//   a block's int32 sums, by row:  | row 0: its lanes |     | row 1: its lanes |    ...
//   Isa::add_pairs of two rows:    | row 0: half as many | row 1: half as many |   ...
//   Isa::add_lanes of all pairs:   | row 0 | row 1 | ... | row lanes-1 |            one vector, or one for each block in the vectors
//
// Each block's sum meets the float sums exactly as in tile_panel.hpp: a token's result does not depend on who is in its call.
#pragma once

#include "interleaved_rows.hpp"
#include "row_groups.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct RowProduct {
  using Groups = RowGroups<Isa>;
  using Stretch = typename Groups::Stretch;
  static constexpr int kRows = Groups::kRows;
  static constexpr std::size_t kBytes = Groups::kBytes;

  template <int Bits>
  static constexpr int parts = Isa::template parts<Bits>;

  // kRows rows from `row` on. The stretch comes by value: vectors that are stored may alias anything, so that behind a reference
  // its fields would be read at every step.
  template <int Bits, int M, int Block>
  static void rows_as_read(const BlockWeights& w, std::size_t row, const Stretch s, float* const* out) {
    constexpr int step = Groups::template values_per_vector<Bits>;
    constexpr int vectors = Block > step ? Block / step : 1;  // of a row, that are taken at once
    constexpr int blocks = step > Block ? step / Block : 1;   // in them
    constexpr int words = vectors * parts<Bits>;              // of a token, against them
    typename Isa::Float totals[M];
    each<M>([&](auto m) ECHOVLM_LAMBDA { totals[m.value] = Isa::load_floats(out[m.value] + row); });
    Groups::template spread_scales<Block>(w, row, s);
    const std::size_t bytes = s.part.bytes, row_bytes = w.row_bytes;
    const std::uint8_t* from = w.values + row * row_bytes + s.part.begin;
    const RowsAhead<Isa> ahead(w, s.part, row, kRows, 0);
    const std::uint8_t* x = s.x;
    const std::int32_t* begins = s.begins;
    const float *x_scales = s.x_scales, *scales = s.scales;
    for (std::size_t at = 0; at < bytes; at += vectors * kBytes) {
      typename Isa::Int pairs[M][kRows / 2];
      const auto take = [&](int pair) ECHOVLM_LAMBDA {
        typename Isa::Bytes stored[2][words];
        each<2>([&](auto half) ECHOVLM_LAMBDA {
          const std::size_t offset = (2 * pair + half.value) * row_bytes;
          each<vectors>([&](auto v) ECHOVLM_LAMBDA {
            if constexpr (v.value * kBytes % 64 == 0) ahead.ask(offset, at + v.value * kBytes);
            typename Isa::Bytes unpacked[parts<Bits>];
            Isa::template unpack<Bits>(Isa::load(from + offset + at + v.value * kBytes), unpacked);
            each<parts<Bits>>([&](auto part) ECHOVLM_LAMBDA { stored[half.value][v.value * parts<Bits> + part.value] = unpacked[part.value]; });
          });
        });
        each<M>([&](auto m) ECHOVLM_LAMBDA {
          typename Isa::Int sums[2] = {Isa::no_partial(), Isa::no_partial()};
          each<words>([&](auto i) ECHOVLM_LAMBDA {
            constexpr int v = i.value / parts<Bits>, part = i.value % parts<Bits>;
            const auto word = Isa::load(x + ((v * M + m.value) * parts<Bits> + part) * kBytes);
            each<2>([&](auto half) ECHOVLM_LAMBDA {
              sums[half.value] = Isa::template partial_dot<Bits>(sums[half.value], stored[half.value][i.value], word);
            });
          });
          pairs[m.value][pair] = Isa::add_pairs(Isa::template whole<Bits>(sums[0]), Isa::template whole<Bits>(sums[1]));
        });
      };
      if constexpr (M == 1)
        each<kRows / 2>([&](auto pair) ECHOVLM_LAMBDA { take(pair.value); });
      else
        for (int pair = 0; pair < kRows / 2; ++pair) take(pair);
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        typename Isa::Int sums[blocks];
        Isa::add_lanes(pairs[m.value], sums);
        each<blocks>([&](auto block) ECHOVLM_LAMBDA {
          const auto whole = Isa::add(sums[block.value], Isa::set_int(begins[2 * (block.value * M + m.value)]));
          const auto scaled = Isa::multiply(Isa::to_float(whole), Isa::load_floats(scales + block.value * kRows));
          totals[m.value] = Isa::multiply_add(scaled, Isa::broadcast(x_scales[block.value * M + m.value]), totals[m.value]);
        });
      });
      begins += 2 * blocks * M;
      x_scales += blocks * M;
      scales += blocks * kRows;
      x += M * words * kBytes;
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA { Isa::store_floats(out[m.value] + row, totals[m.value]); });
  }

  template <int Bits, int M, int Block>
  static void rows(const BlockWeights& w, std::size_t row, const Stretch& s, float* const* out) {
    if constexpr (Isa::interleaves_rows) {
      constexpr bool as_read = M == 1 && Block * Isa::most_blocks_of_row >= Groups::template values_per_vector<Bits>;
      if constexpr (as_read)
        rows_as_read<Bits, M, Block>(w, row, s, out);
      else
        InterleavedRows<Isa>::template rows<Bits, M, Block>(w, row, s, out);
    } else {
      rows_as_read<Bits, M, Block>(w, row, s, out);
    }
  }

  // `count` tokens as M: the last is there several times, and only one of its results is kept.
  template <int Bits, int M>
  static void tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, std::size_t i, std::size_t count,
                     const Accumulator& c, std::uint8_t* scratch) {
    constexpr std::size_t unit = 128;
    static_assert(unit % Groups::template values_per_vector<Bits> == 0);
    constexpr std::size_t most = Groups::kActivationBytes * 8 / (M * parts<Bits> * Bits) / unit * unit;
    const std::size_t stretches = (w.k + most - 1) / most;
    const std::size_t even = ((w.k + stretches - 1) / stretches + unit - 1) / unit * unit;
    Stretch s{};
    s.x = scratch;
    s.begins = reinterpret_cast<std::int32_t*>(scratch + Groups::kActivationBytes);
    s.x_scales = reinterpret_cast<float*>(s.begins + 2 * Groups::kMostBlocks);
    s.scales = s.x_scales + Groups::kMostBlocks;
    float* const surplus = s.scales + kRows * Groups::kMostBlocks;  // kMostRows results of tokens that are there more than once
    float* out[M];
    std::uint32_t tokens[M];
    for (std::size_t m = 0; m < M; ++m) {
      tokens[m] = list.tokens[i + (m < count ? m : count - 1)];
      out[m] = m < count ? c.values + accumulator_row(list, i + m) * c.stride : surplus;
    }
    for (std::size_t k0 = 0; k0 < w.k; k0 += even) {
      const std::size_t values = w.k - k0 < even ? w.k - k0 : even;
      s.part = RowPart(w, k0 * Bits / 8, values * Bits / 8, Isa::prefetch_bytes / kRows);
      s.first_block = k0 / w.block;
      s.blocks = values / w.block;
      Groups::template prepare<Bits, M>(x, tokens, k0, values, s);
      for (std::size_t row = 0; row < w.rows; row += kRows) {
        switch (w.block) {
          case 16: rows<Bits, M, 16>(w, row, s, out); break;
          case 32: rows<Bits, M, 32>(w, row, s, out); break;
          case 64: rows<Bits, M, 64>(w, row, s, out); break;
          default: rows<Bits, M, 128>(w, row, s, out); break;
        }
      }
    }
  }

  template <int Bits>
  static void all_tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                         std::uint8_t* scratch) {
    for (std::size_t i = 0; i < list.count; i += 8) {
      const std::size_t left = list.count - i;
      switch (left) {
        case 1: tokens<Bits, 1>(w, x, list, i, left, c, scratch); break;
        case 2: tokens<Bits, 2>(w, x, list, i, left, c, scratch); break;
        case 3: tokens<Bits, 3>(w, x, list, i, left, c, scratch); break;
        case 4: tokens<Bits, 4>(w, x, list, i, left, c, scratch); break;
        case 5:
        case 6: tokens<Bits, 6>(w, x, list, i, left, c, scratch); break;
        default: tokens<Bits, 8>(w, x, list, i, left < 8 ? left : 8, c, scratch); break;
      }
    }
  }

  // A whole number of kRows rows.
  template <int Bits>
  static void run(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                  std::uint8_t* scratch) {
    each_rows(w, c, Groups::kMostRows, [&](const BlockWeights& some, const Accumulator& to) {
      all_tokens<Bits>(some, x, list, to, scratch);
    });
  }
};

}  // namespace
}  // namespace echovlm
