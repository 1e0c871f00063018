// Product for few tokens: sixteen rows at a time, interleaved into two vectors of 8-byte pieces.
//
//   packed, 8 bytes of each row:      | row 0: k .. k+15 | row 1: k .. k+15 | row 4 | row 5 | ... | row 13 |     (4 bits, 64 bytes)
//                                     | row 2: k .. k+15 | row 3: k .. k+15 | row 6 | row 7 | ... | row 15 |
//   activations, 8 bytes, broadcast:  | even k           | the same         | ...                          |     and | odd k | ...
//
// Isa::dot leaves each row's sum in two adjacent lanes of one of the two vectors. At the end of a block, Isa::add_pairs adds these
// pairs and merges both vectors into one with the rows in order:
//
//   sums[0]:    | row 0 | row 0 | row 1 | row 1 | row 4 | row 4 | row 5 | row 5 | ...        (int32 lanes)
//   sums[1]:    | row 2 | row 2 | row 3 | row 3 | row 6 | row 6 | row 7 | row 7 | ...
//   add_pairs:  | row 0 | row 1 | row 2 | row 3 | row 4 | row 5 | row 6 | row 7 | ... | row 15 |
//
// So one broadcast of activations serves two products, and one conversion to float and one vector of scales serve all 16 rows.
//
// A processor's scheduler fills up with products that wait for their operands, and then starts nothing after them. Therefore the code
// interleaves the next step's rows in between this step's products, and keeps them in memory until they are used.
//
// With one token interleaving does not pay: rows are multiplied as they are read, and the lanes are summed at the end of a block.
//
// Block sums are added to the float sums exactly as in tile_panel.hpp, so that a token's result does not depend on the batch.
#pragma once

#include "block_weights.hpp"
#include "rows_ahead.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct InterleavedRows {
  static constexpr int kRows = Isa::lanes, kPieces = kRows / 2;
  static constexpr std::size_t kBytes = 4 * Isa::lanes, kPiece = 8;
  static constexpr std::size_t kActivationBytes = 16 * 1024;  // half of the L1 cache
  static constexpr std::size_t kMostBlocks = kActivationBytes / 16;
  static constexpr std::size_t kMostRows = 128;  // rows per pass over all stretches of K: their sums stay in the L2 cache
  static_assert(kActivationBytes + ((3 + kRows) * kMostBlocks + kMostRows) * sizeof(float) <= kScratchBytes);

  template <int Bits>
  static constexpr int parts = Isa::template parts<Bits>;

  template <int Bits>
  static constexpr int values_per_vector = kBytes * 8 / Bits;

  // A stretch of K for M tokens, in the scratch memory: its activations fit half of the L1 cache.
  struct Stretch {
    RowPart part;
    std::size_t first_block, blocks;
    std::uint8_t* x;       // [vector][token][part]
    std::int32_t* begins;  // [block][token][2]: initial sums, -zero * (sum of activations) and 0, for a row's two lanes
    float* x_scales;       // [block][token]
    float* scales;         // [block][row], of the current kRows rows
  };

  // Returns whether a row is a whole number of vectors.
  static bool takes(const BlockWeights& w) { return w.k * static_cast<std::size_t>(w.bits) / 8 % kBytes == 0; }

  template <int Bits, int M>
  static void prepare(const QuantizedTokens& x, const std::uint32_t* tokens, std::size_t k0, std::size_t values, const Stretch& to) {
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    arrange_tokens<Isa, Bits, M>(x, tokens, k0, values, to.x);
    for (int m = 0; m < M; ++m) {
      const std::size_t first = tokens[m] * x.scale_stride + to.first_block;
      for (std::size_t b = 0; b < to.blocks; ++b) {
        to.begins[(b * M + m) * 2] = -zero * x.sums[first + b];
        to.begins[(b * M + m) * 2 + 1] = 0;
        to.x_scales[b * M + m] = x.scales[first + b];
      }
    }
  }

  // Transposes the scales of kRows rows into s.scales [block][row]. Prefetches the scales of the next rows: a row cannot start
  // without them, and hardware prefetchers do not detect so few cache lines.
  template <int Block>
  static ECHOVLM_INLINE void spread_scales(const BlockWeights& w, std::size_t row, const Stretch& s) {
    if (w.half_scales)
      spread_scales<Block>(w, static_cast<const std::uint16_t*>(w.scales), row, s,
                           [](auto* p, std::size_t count) ECHOVLM_LAMBDA { return Isa::load_some_halves(p, count); });
    else
      spread_scales<Block>(w, static_cast<const float*>(w.scales), row, s,
                           [](auto* p, std::size_t count) ECHOVLM_LAMBDA { return Isa::load_some_floats(p, count); });
  }

  template <int Block, class Scale, class Load>
  static ECHOVLM_INLINE void spread_scales(const BlockWeights& w, const Scale* all, std::size_t row, const Stretch& s, Load load) {
    const std::size_t stride = w.scale_stride;
    const Scale* from = all + row * stride + s.first_block;
    const Scale* ahead = s.part.template scales<Scale>(w, row + kRows, s.first_block);
    const auto ask = [&](std::size_t b) ECHOVLM_LAMBDA {
      each<kRows>([&](auto r) ECHOVLM_LAMBDA { __builtin_prefetch(ahead + r.value * stride + b, 0, Isa::prefetch_level); });
    };
    for (std::size_t b = 0; b < s.blocks; b += kRows) {
      ask(b);
      typename Isa::Bytes scales[kRows];
      each<kRows>([&](auto r) ECHOVLM_LAMBDA { scales[r.value] = Isa::as_bytes(load(from + r.value * stride + b, s.blocks - b)); });
      Isa::transpose(scales);
      each<kRows>([&](auto i) ECHOVLM_LAMBDA { Isa::store_floats(s.scales + (b + i.value) * kRows, Isa::as_floats(scales[i.value])); });
    }
    ask(s.blocks - 1);
  }

  // Multiplies kRows rows from `row` on by M tokens. The stretch is passed by value: vector stores may alias anything, so the compiler
  // would reload the fields of a reference at every step.
  template <int Bits, int M, int Block>
  static void rows_of_some(const BlockWeights& w, std::size_t row, const Stretch s, float* const* out) {
    constexpr int step = values_per_vector<Bits>;
    constexpr int vectors = Block > step ? Block / step : 1;  // vectors of a row per step
    constexpr int blocks = step > Block ? step / Block : 1;   // blocks per step
    constexpr int pieces = kPieces * vectors / blocks;        // 8-byte pieces per block
    typename Isa::Float totals[M];
    each<M>([&](auto m) ECHOVLM_LAMBDA { totals[m.value] = Isa::load_floats(out[m.value] + row); });
    spread_scales<Block>(w, row, s);
    const std::size_t bytes = s.part.bytes, row_bytes = w.row_bytes;
    const std::uint8_t* from = w.values + row * row_bytes + s.part.begin;
    const RowsAhead<Isa> ahead(w, s.part, row, kRows, 0);
    const std::uint8_t* x = s.x;
    const std::int32_t* begins = s.begins;
    const float *x_scales = s.x_scales, *scales = s.scales;

    typename Isa::Bytes packed[2][vectors][2][kPieces];  // double buffer: one step is multiplied while the next is interleaved
    const auto interleave = [&](auto v, auto half, std::size_t at, int turn) ECHOVLM_LAMBDA {
      auto& to = packed[turn][v.value][half.value];
      each<kPieces>([&](auto place) ECHOVLM_LAMBDA {
        constexpr int r = place.value / 2 * 4 + half.value * 2 + place.value % 2;
        ahead.ask(r * row_bytes, at + v.value * kBytes);
        to[place.value] = Isa::load(from + r * row_bytes + at + v.value * kBytes);
      });
      Isa::interleave(to);
    };
    each<vectors>([&](auto v) ECHOVLM_LAMBDA {
      each<2>([&](auto half) ECHOVLM_LAMBDA { interleave(v, half, 0, 0); });
    });
    int turn = 0;
    for (std::size_t at = 0; at < bytes; at += vectors * kBytes, turn ^= 1) {
      // After the last step the same one is interleaved again, which avoids a branch.
      const std::size_t next = at + vectors * kBytes < bytes ? at + vectors * kBytes : at;
      each<blocks>([&](auto block) ECHOVLM_LAMBDA {
        typename Isa::Int sums[2][M];
        each<M>([&](auto m) ECHOVLM_LAMBDA { sums[0][m.value] = sums[1][m.value] = Isa::broadcast_piece(begins + 2 * m.value); });
        each<pieces>([&](auto i) ECHOVLM_LAMBDA {
          constexpr int piece = block.value * pieces + i.value, v = piece / kPieces, place = piece % kPieces;
          typename Isa::Bytes stored[2][parts<Bits>];
          each<2>([&](auto half) ECHOVLM_LAMBDA { Isa::template unpack<Bits>(packed[turn][v][half.value][place], stored[half.value]); });
          each<parts<Bits>>([&](auto part) ECHOVLM_LAMBDA {
            each<M>([&](auto m) ECHOVLM_LAMBDA {
              const auto words = Isa::broadcast_piece(x + ((v * M + m.value) * parts<Bits> + part.value) * kBytes + place * kPiece);
              each<2>([&](auto half) ECHOVLM_LAMBDA {
                auto& sum = sums[half.value][m.value];
                sum = Isa::template dot<Bits>(sum, stored[half.value][part.value], words);
              });
            });
          });
          constexpr int half_step = kPieces / 2;
          if constexpr (place % half_step == half_step / 2)
            interleave(std::integral_constant<int, v>(), std::integral_constant<int, place / half_step>(), next, turn ^ 1);
        });
        const auto scale = Isa::load_floats(scales);
        each<M>([&](auto m) ECHOVLM_LAMBDA {
          const auto scaled = Isa::multiply(Isa::to_float(Isa::add_pairs(sums[0][m.value], sums[1][m.value])), scale);
          totals[m.value] = Isa::multiply_add(scaled, Isa::broadcast(x_scales[m.value]), totals[m.value]);
        });
        begins += 2 * M;
        x_scales += M;
        scales += kRows;
      });
      x += vectors * M * parts<Bits> * kBytes;
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA { Isa::store_floats(out[m.value] + row, totals[m.value]); });
  }

  // Multiplies kRows rows from `row` on by one token; a block is a whole number of vectors.
  template <int Bits, int Block>
  static void rows_of_one(const BlockWeights& w, std::size_t row, const Stretch s, float* out) {
    constexpr int vectors = Block / values_per_vector<Bits>;  // vectors per block
    auto total = Isa::load_floats(out + row);
    spread_scales<Block>(w, row, s);
    const std::size_t row_bytes = w.row_bytes;
    const std::uint8_t* from = w.values + row * row_bytes + s.part.begin;
    const RowsAhead<Isa> ahead(w, s.part, row, kRows, 0);
    const std::uint8_t* x = s.x;
    std::size_t at = 0;
    for (std::size_t block = 0; block < s.blocks; ++block) {
      typename Isa::Bytes words[vectors][parts<Bits>];
      each<vectors>([&](auto v) ECHOVLM_LAMBDA {
        each<parts<Bits>>([&](auto part) ECHOVLM_LAMBDA {
          words[v.value][part.value] = Isa::load(x + (v.value * parts<Bits> + part.value) * kBytes);
        });
      });
      const auto sums = Isa::add_lanes([&](auto r) ECHOVLM_LAMBDA {
        auto sum = Isa::set_int(0);
        each<vectors>([&](auto v) ECHOVLM_LAMBDA {
          ahead.ask(r.value * row_bytes, at + v.value * kBytes);
          typename Isa::Bytes stored[parts<Bits>];
          Isa::template unpack<Bits>(Isa::load(from + r.value * row_bytes + at + v.value * kBytes), stored);
          each<parts<Bits>>([&](auto part) ECHOVLM_LAMBDA {
            sum = Isa::template dot<Bits>(sum, stored[part.value], words[v.value][part.value]);
          });
        });
        return sum;
      });
      const auto whole = Isa::add(sums, Isa::set_int(s.begins[2 * block]));
      const auto scaled = Isa::multiply(Isa::to_float(whole), Isa::load_floats(s.scales + block * kRows));
      total = Isa::multiply_add(scaled, Isa::broadcast(s.x_scales[block]), total);
      at += vectors * kBytes;
      x += vectors * parts<Bits> * kBytes;
    }
    Isa::store_floats(out + row, total);
  }

  template <int Bits, int M, int Block>
  static void rows(const BlockWeights& w, std::size_t row, const Stretch& s, float* const* out) {
    if constexpr (M == 1 && Block >= values_per_vector<Bits>)
      rows_of_one<Bits, Block>(w, row, s, out[0]);
    else
      rows_of_some<Bits, M, Block>(w, row, s, out);
  }

  // Multiplies `count` <= M tokens. The last token is repeated to fill M; the results of its repetitions are discarded.
  template <int Bits, int M>
  static void tokens(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, std::size_t i, std::size_t count,
                     const Accumulator& c, std::uint8_t* scratch) {
    constexpr std::size_t unit = 128;
    static_assert(unit % values_per_vector<Bits> == 0);
    constexpr std::size_t most = kActivationBytes * 8 / (M * parts<Bits> * Bits) / unit * unit;
    const std::size_t stretches = (w.k + most - 1) / most;
    const std::size_t even = ((w.k + stretches - 1) / stretches + unit - 1) / unit * unit;
    Stretch s{};
    s.x = scratch;
    s.begins = reinterpret_cast<std::int32_t*>(scratch + kActivationBytes);
    s.x_scales = reinterpret_cast<float*>(s.begins + 2 * kMostBlocks);
    s.scales = s.x_scales + kMostBlocks;
    float* const surplus = s.scales + kRows * kMostBlocks;  // kMostRows discarded results of the repeated token
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
      prepare<Bits, M>(x, tokens, k0, values, s);
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

  // `w.rows` must be a multiple of kRows.
  template <int Bits>
  static void run(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                  std::uint8_t* scratch) {
    each_rows(w, c, kMostRows, [&](const BlockWeights& some, const Accumulator& to) {
      all_tokens<Bits>(some, x, list, to, scratch);
    });
  }
};

}  // namespace
}  // namespace echovlm
