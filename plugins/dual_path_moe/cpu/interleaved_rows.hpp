// Two to sixteen tokens with AVX-512: sixteen weight rows at a time, read straight from memory into two vectors, each with 8 bytes
// of each of 8 rows.
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
// Each block's sum meets the float sums exactly as in tile_panel.hpp: a token's result does not depend on who is in its call.
#pragma once

#include "row_groups.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct InterleavedRows {
  using Groups = RowGroups<Isa>;
  using Stretch = typename Groups::Stretch;
  static constexpr int kRows = Groups::kRows, kPieces = kRows / 2;
  static constexpr std::size_t kBytes = Groups::kBytes, kPiece = 8;

  template <int Bits>
  static constexpr int parts = Isa::template parts<Bits>;

  // kRows rows from `row` on. The stretch comes by value: vectors that are stored may alias anything, so that behind a reference
  // its fields would be read at every step.
  template <int Bits, int M, int Block>
  static void rows(const BlockWeights& w, std::size_t row, const Stretch s, float* const* out) {
    constexpr int step = Groups::template values_per_vector<Bits>;
    constexpr int vectors = Block > step ? Block / step : 1;  // of a row, that are taken at once
    constexpr int blocks = step > Block ? step / Block : 1;   // in them
    constexpr int pieces = kPieces * vectors / blocks;        // of a block
    typename Isa::Float totals[M];
    each<M>([&](auto m) ECHOVLM_LAMBDA { totals[m.value] = Isa::load_floats(out[m.value] + row); });
    Groups::template spread_scales<Block>(w, row, s);
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
};

}  // namespace
}  // namespace echovlm
