// Few tokens: rows read straight from memory, as many at a time as a vector has pieces of 8 bytes.
//
//   packed, 8 bytes of each row:      | row 0: k .. k+15 | row 1: k .. k+15 | ... | row 7 |     (4 bits, 64 bytes)
//   activations, 8 bytes, broadcast:  | even k           | the same         | ...         |     and | odd k | ...
//
// Isa::dot of the two leaves each row's sum in two lanes, which are added. One conversion to float and one scale then serve all the
// rows of a vector, which is what makes a block cheap: for a block of 128, 16 products and two operations in floats do eight rows.
//
// Each block's sum meets the float sums exactly as in tile_panel.hpp: a token's result does not depend on who is in its call.
#pragma once

#include "block_weights.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct InterleavedRows {
  static constexpr int kRows = Isa::lanes / 2;
  static constexpr std::size_t kBytes = 4 * Isa::lanes, kPiece = 8;
  static constexpr std::size_t kActivationBytes = 16 * 1024;  // half of a first-level cache
  static constexpr std::size_t kRowsOfSums = 128;
  static constexpr int kMostTokens = 8;
  static constexpr std::size_t kMostBlocks = kActivationBytes / 16;
  static constexpr std::size_t kSums = kRowsOfSums / kRows * kMostTokens * Isa::lanes;
  static_assert(kActivationBytes + ((2 + Isa::lanes) * kMostBlocks + kSums + kRowsOfSums) * sizeof(float) <= kScratchBytes);

  template <int Bits>
  static constexpr int parts = Isa::template parts<Bits>;

  template <int Bits>
  static constexpr std::size_t values_per_vector = kBytes * 8 / Bits;

  // A stretch of K for M tokens, in the scratch: its activations fit half of a first-level cache.
  struct Stretch {
    std::size_t k0, values, blocks;
    bool first, last;
    std::uint8_t* x;       // by vector, token and part
    std::int32_t* begins;  // by block and token: -zero * (sum of activations)
    float* x_scales;       // by block and token
    float* scales;         // of the rows at hand, by block, as a vector wants them
    float* sums;           // by rows at hand and token, from one stretch to the next
  };

  // Whether every row ends with a whole vector.
  static bool takes(const BlockWeights& w) { return w.k * static_cast<std::size_t>(w.bits) / 8 % kBytes == 0; }

  template <int Bits, int M>
  static void prepare(const BlockWeights& w, const QuantizedTokens& x, const std::uint32_t* tokens, const Stretch& to) {
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    arrange_tokens<Isa, Bits, M>(x, tokens, to.k0, to.values, to.x);
    for (int m = 0; m < M; ++m) {
      const std::size_t first = tokens[m] * x.scale_stride + to.k0 / w.block;
      for (std::size_t b = 0; b < to.blocks; ++b) {
        to.begins[b * M + m] = -zero * x.sums[first + b];
        to.x_scales[b * M + m] = x.scales[first + b];
      }
    }
  }

  // The scales of kRows rows, each in the lanes of its row: two blocks are a piece of 8 bytes. Asks for those of the rows that
  // come next, because nothing of a row can begin without them, and a hardware prefetcher takes no notice of so few lines.
  static ECHOVLM_INLINE void spread_scales(const BlockWeights& w, std::size_t row, const Stretch& s) {
    const std::size_t width = w.half_scales ? 2 : 4, row_bytes = w.scale_stride * width, bytes = s.blocks * width;
    const std::uint8_t* from = static_cast<const std::uint8_t*>(w.scales) + row * row_bytes + s.k0 / w.block * width;
    for (int r = 0; r < kRows; ++r) ask_for(from + (r + kRows) * row_bytes, bytes);
    float* to = s.scales;
    for (std::size_t b = 0; b < s.blocks; b += Isa::lanes) {
      const std::size_t left = s.blocks - b;
      typename Isa::Bytes pieces[kRows];
      each<kRows>([&](auto r) ECHOVLM_LAMBDA {
        const std::uint8_t* p = from + r.value * row_bytes + b * width;
        pieces[r.value] =
            Isa::as_bytes(w.half_scales ? Isa::load_some_halves(reinterpret_cast<const std::uint16_t*>(p), left)
                                        : Isa::load_some_floats(reinterpret_cast<const float*>(p), left));
      });
      Isa::interleave(pieces);
      each<kRows>([&](auto q) ECHOVLM_LAMBDA {
        Isa::store_floats(to, Isa::even_lanes_twice(Isa::as_floats(pieces[q.value])));
        Isa::store_floats(to + Isa::lanes, Isa::odd_lanes_twice(Isa::as_floats(pieces[q.value])));
        to += 2 * Isa::lanes;
      });
    }
  }

  // kRows rows from `row` on. A block is V vectors of each row, or a vector P blocks.
  template <int Bits, int M, int V, int P>
  static void rows(const BlockWeights& w, std::size_t row, const Stretch s, float* const* out) {
    constexpr int pieces = kRows * V / P;  // of a block
    typename Isa::Float totals[M];
    float* kept = s.sums + row / kRows * M * Isa::lanes;
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      totals[m.value] = s.first ? Isa::load_rows(out[m.value] + row) : Isa::load_floats(kept + m.value * Isa::lanes);
    });
    spread_scales(w, row, s);
    const std::size_t bytes = s.values * Bits / 8, row_bytes = w.row_bytes;
    const std::uint8_t* from = w.values + row * row_bytes + s.k0 * Bits / 8;
    const std::uint8_t* x = s.x;
    const std::int32_t* begins = s.begins;
    const float *x_scales = s.x_scales, *scales = s.scales;
    for (std::size_t at = 0; at < bytes; at += V * kBytes) {
      // Asks for what is read so much later: past the stretch's end, that is in the rows that follow.
      const std::size_t later = at + Isa::prefetch_bytes / kRows;
      const std::uint8_t* ahead = from + (later < bytes ? later : later - bytes + kRows * row_bytes);
      typename Isa::Bytes packed[V][kRows];
      each<V>([&](auto v) ECHOVLM_LAMBDA {
        each<kRows>([&](auto r) ECHOVLM_LAMBDA {
          __builtin_prefetch(ahead + r.value * row_bytes + v.value * kBytes, 0, 0);
          packed[v.value][r.value] = Isa::load(from + r.value * row_bytes + at + v.value * kBytes);
        });
        Isa::interleave(packed[v.value]);
      });
      each<P>([&](auto p) ECHOVLM_LAMBDA {
        typename Isa::Int sums[M];
        each<M>([&](auto m) ECHOVLM_LAMBDA { sums[m.value] = Isa::first_of_rows(begins + m.value); });
        each<pieces>([&](auto i) ECHOVLM_LAMBDA {
          constexpr int piece = p.value * pieces + i.value, v = piece / kRows, place = piece % kRows;
          typename Isa::Bytes stored[parts<Bits>];
          Isa::template unpack<Bits>(packed[v][place], stored);
          each<parts<Bits>>([&](auto part) ECHOVLM_LAMBDA {
            each<M>([&](auto m) ECHOVLM_LAMBDA {
              const std::uint8_t* words = x + ((v * M + m.value) * parts<Bits> + part.value) * kBytes + place * kPiece;
              sums[m.value] = Isa::template dot<Bits>(sums[m.value], stored[part.value], Isa::broadcast_piece(words));
            });
          });
        });
        const auto scale = Isa::load_floats(scales);
        each<M>([&](auto m) ECHOVLM_LAMBDA {
          const auto scaled = Isa::multiply(Isa::to_float(Isa::add_neighbours(sums[m.value])), scale);
          totals[m.value] = Isa::multiply_add(scaled, Isa::broadcast(x_scales[m.value]), totals[m.value]);
        });
        begins += M;
        x_scales += M;
        scales += Isa::lanes;
      });
      x += V * M * parts<Bits> * kBytes;
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      if (s.last)
        Isa::store_rows(out[m.value] + row, totals[m.value]);
      else
        Isa::store_floats(kept + m.value * Isa::lanes, totals[m.value]);
    });
  }

  // `count` tokens as M: the last is there several times, and only one of its results is kept.
  template <int Bits, int M>
  static void tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, std::size_t i, std::size_t count,
                     const Accumulator& c, std::uint8_t* scratch) {
    constexpr std::size_t step = values_per_vector<Bits>, unit = 128;
    static_assert(unit % step == 0);
    constexpr std::size_t most = kActivationBytes * 8 / (M * parts<Bits> * Bits) / unit * unit;
    const std::size_t stretches = (w.k + most - 1) / most;
    const std::size_t even = ((w.k + stretches - 1) / stretches + unit - 1) / unit * unit;
    Stretch s{};
    s.x = scratch;
    s.begins = reinterpret_cast<std::int32_t*>(scratch + kActivationBytes);
    s.x_scales = reinterpret_cast<float*>(s.begins + kMostBlocks);
    s.scales = s.x_scales + kMostBlocks;
    s.sums = s.scales + Isa::lanes * kMostBlocks;
    float* out[M];  // what is there more than once goes behind the sums
    std::uint32_t tokens[M];
    for (std::size_t m = 0; m < M; ++m) {
      tokens[m] = list.tokens[i + (m < count ? m : count - 1)];
      out[m] = m < count ? c.values + accumulator_row(list, i + m) * c.stride : s.sums + kSums;
    }
    for (s.k0 = 0; s.k0 < w.k; s.k0 += s.values) {
      s.values = w.k - s.k0 < even ? w.k - s.k0 : even;
      s.blocks = s.values / w.block;
      s.first = s.k0 == 0;
      s.last = s.k0 + s.values == w.k;
      prepare<Bits, M>(w, x, tokens, s);
      for (std::size_t row = 0; row < w.rows; row += kRows) {
        if (M <= 2 && w.block == step && s.values % (2 * step) == 0)
          rows<Bits, M, 2, 2>(w, row, s, out);  // two lines of a row, one after the other: memory answers neighbours faster
        else if (w.block == step)
          rows<Bits, M, 1, 1>(w, row, s, out);
        else if (w.block == 2 * step)
          rows<Bits, M, 2, 1>(w, row, s, out);
        else if (2 * w.block == step)
          rows<Bits, M, 1, 2>(w, row, s, out);
        else if (4 * w.block == step)
          rows<Bits, M, 1, 4>(w, row, s, out);
        else
          rows<Bits, M, 1, 8>(w, row, s, out);
      }
    }
  }

  template <int Bits>
  static void all_tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                         std::uint8_t* scratch) {
    for (std::size_t i = 0; i < list.count; i += 8) {
      const std::size_t left = list.count - i;
      if (left == 1)
        tokens<Bits, 1>(w, x, list, i, left, c, scratch);
      else if (left == 2)
        tokens<Bits, 2>(w, x, list, i, left, c, scratch);
      else if (left <= 4)
        tokens<Bits, 4>(w, x, list, i, left, c, scratch);
      else
        tokens<Bits, 8>(w, x, list, i, left < 8 ? left : 8, c, scratch);
    }
  }

  // A whole number of kRows rows.
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
