// Product for many tokens: unpacks rows into a panel that fits the L1 cache, then multiplies it in register tiles of tokens by rows.
//
//   panel, one step of K (4 values):   | row 0: k k+1 k+2 k+3 | row 1: k .. k+3 | ... | row lanes-1 |   x panel_vectors
//   one activation word, broadcast:    | k k+1 k+2 k+3        | the same        | ...
//
// Isa::dot of the two adds four products to each row's int32 sum. At the end of a block the sum is scaled and added to a float32 sum.
// A 32-bit word of packed 4-bit weights gives two steps, its low nibbles (even k) and its high nibbles (odd k); the activations are
// stored in that order. Where Isa::dot takes 8-bit weights in several vectors (Isa::panel_copies), these lie one after the other.
#pragma once

#include "block_weights.hpp"

namespace echovlm {
namespace {

constexpr std::size_t kPanelBytes = 16 * 1024;  // half of the L1 cache

// Copies the scales of `blocks` blocks of `rows` rows to [block][row]; zeros for rows past the last.
inline void transpose_scales(const BlockWeights& w, std::size_t row0, std::size_t rows, std::size_t block0, std::size_t blocks,
                             float* to) {
  for (std::size_t r = 0; r < rows; ++r) {
    const std::size_t at = (row0 + r) * w.scale_stride + block0;
    if (row0 + r >= w.rows) {
      for (std::size_t b = 0; b < blocks; ++b) to[b * rows + r] = 0.0f;
    } else if (w.half_scales) {
      const std::uint16_t* from = static_cast<const std::uint16_t*>(w.scales) + at;
      for (std::size_t b = 0; b < blocks; ++b) to[b * rows + r] = half_to_float(from[b]);
    } else {
      const float* from = static_cast<const float*>(w.scales) + at;
      for (std::size_t b = 0; b < blocks; ++b) to[b * rows + r] = from[b];
    }
  }
}

// Prefetches weights for the next panels: a panel has more rows than a hardware prefetcher can follow as streams. It prefetches runs of
// several adjacent cache lines of a row, which memory delivers faster, and only a few lines between products, because a processor with
// too many outstanding loads stalls.
class Prefetch {
 public:
  Prefetch(const BlockWeights& w, std::size_t panel_rows)
      : w_(w),
        panel_rows_(panel_rows),
        row_bytes_(w.k * static_cast<std::size_t>(w.bits) / 8),
        scale_bytes_(w.half_scales ? 2 : 4),
        scale_bytes_of_run_(kRun * 8 / static_cast<std::size_t>(w.bits) / w.block * scale_bytes_) {
    begin_run();
    owe(kRun < row_bytes_ ? kRun : row_bytes_);
    rest();
  }

  // Adds `bytes` per row of a panel to what is still to be prefetched; called when as many bytes are about to be unpacked, so that the
  // prefetch distance stays the same.
  void owe(std::size_t bytes) { owed_ += bytes * panel_rows_ / kLine; }

  // Divides what is still to be prefetched into `shares` equal shares.
  void divide(std::uint32_t shares) { share_ = (static_cast<std::uint32_t>(owed_) + shares - 1) / shares; }

  // Prefetches the next share.
  void share() { ask(share_ < owed_ ? share_ : owed_); }

  // Prefetches everything that is left.
  void rest() { ask(owed_); }

 private:
  static constexpr std::size_t kRun = 512, kLine = 64;

  void ask(std::size_t lines) {
    owed_ -= lines;
    for (; lines != 0; --lines) {
      __builtin_prefetch(next_, 0, 2);
      next_ += kLine;
      if (next_ >= end_of_run_) next_run();
    }
  }

  void next_run() {
    if (++row_ == panel_rows_) {
      row_ = 0;
      ++run_;
      if (run_ * kRun >= row_bytes_) {
        run_ = 0;
        panel_ += panel_rows_;
      }
    }
    begin_run();
  }

  // Past the last row there is nothing to prefetch: the first row is prefetched again, which is harmless.
  void begin_run() {
    const std::size_t row = panel_ + row_ < w_.rows ? panel_ + row_ : 0, offset = run_ * kRun, left = row_bytes_ - offset;
    next_ = w_.values + row * w_.row_bytes + offset;
    end_of_run_ = next_ + (kRun < left ? kRun : left);
    const std::uint8_t* scales = static_cast<const std::uint8_t*>(w_.scales) + row * w_.scale_stride * scale_bytes_;
    __builtin_prefetch(scales + run_ * scale_bytes_of_run_, 0, 2);
  }

  const BlockWeights& w_;
  const std::size_t panel_rows_, row_bytes_, scale_bytes_, scale_bytes_of_run_;
  std::size_t panel_ = 0, row_ = 0, run_ = 0, owed_ = 0, share_ = 0;
  const std::uint8_t *next_ = nullptr, *end_of_run_ = nullptr;
};

// An unpacked panel: kRows rows from `row0` on, `blocks` blocks from `block0` on (K from `k0` on).
struct PanelChunk {
  const std::uint8_t* panel;
  const float* scales;  // [block][row]
  std::size_t row0, k0, block, block0, blocks;
};

// Unpacks kRows rows at a time, one chunk of K after another, and multiplies each chunk. `Panel` defines the layout. There is no 64-bit
// division per chunk or tile: on some processors one takes as long as a block of a tile.
template <class Panel, int Bits>
void panel_product(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                   std::uint8_t* scratch) {
  constexpr std::size_t rows = Panel::kRows, row_bytes = kPanelBytes / rows, longest = row_bytes / Panel::template kWeightBytes<Bits> / 128 * 128;
  constexpr std::size_t most_blocks = longest / 16;
  static_assert(rows <= kAccumulatorPadding && longest >= 128);
  static_assert(kPanelBytes + rows * most_blocks * sizeof(float) <= kScratchBytes);
  auto* scales = reinterpret_cast<float*>(scratch + kPanelBytes);
  const std::size_t all = w.k / w.block, some = longest / w.block, block_bytes = w.block * Bits / 8;
  Prefetch prefetch(w, rows);
  for (std::size_t row0 = 0; row0 < w.rows; row0 += rows) {
    for (std::size_t block0 = 0; block0 < all; block0 += some) {
      const std::size_t blocks = all - block0 < some ? all - block0 : some;
      const PanelChunk chunk{scratch, scales, row0, block0 * w.block, w.block, block0, blocks};
      prefetch.rest();
      prefetch.owe(blocks * block_bytes);
      transpose_scales(w, row0, rows, block0, blocks, scales);
      Panel::template unpack<Bits>(w, row0, chunk.k0, blocks * w.block, scratch);
      Panel::template multiply<Bits>(chunk, x, list, c, prefetch);
    }
  }
}

template <class Isa>
struct TilePanel {
  static constexpr std::size_t kBytes = 4 * Isa::lanes;
  static constexpr std::size_t kVectors = Isa::panel_vectors;
  static constexpr std::size_t kRows = Isa::lanes * kVectors;
  template <int Bits>
  static constexpr std::size_t kWeightBytes = Isa::template panel_copies<Bits>;
  template <int Bits>
  static constexpr std::size_t kVectorBytes = kBytes * Isa::template panel_copies<Bits>;
  template <int Bits>
  static constexpr std::size_t kStepBytes = kVectors * kVectorBytes<Bits>;

  // Stores 32-bit word i of every row as one step of the panel (8 bits) or two (4 bits).
  template <int Bits>
  static ECHOVLM_INLINE void store_word(typename Isa::Bytes word, std::size_t i, std::uint8_t* to) {
    if constexpr (Bits == 4) {
      Isa::store(to + 2 * i * kStepBytes<Bits>, Isa::low(word));
      Isa::store(to + (2 * i + 1) * kStepBytes<Bits>, Isa::high(word));
    } else {
      Isa::store_panel8(to + i * kStepBytes<Bits>, word);
    }
  }

  template <int Bits>
  static void unpack(const BlockWeights& w, std::size_t row0, std::size_t k0, std::size_t k, std::uint8_t* panel) {
    const std::size_t bytes = k * Bits / 8;
    for (std::size_t v = 0; v < kVectors; ++v) {
      for (std::size_t at = 0; at < bytes; at += kBytes) {
        const std::size_t valid = bytes - at < kBytes ? bytes - at : kBytes;
        typename Isa::Bytes words[Isa::lanes];
        const std::size_t row = row0 + v * Isa::lanes;
        const std::uint8_t* from = w.values + row * w.row_bytes + k0 * Bits / 8 + at;
        std::uint8_t* to = panel + at * 8 / Bits / 4 * kStepBytes<Bits> + v * kVectorBytes<Bits>;
        if (valid == kBytes && row + Isa::lanes <= w.rows) {
          each<Isa::lanes>([&](auto l) ECHOVLM_LAMBDA { words[l.value] = Isa::load(from + l.value * w.row_bytes); });
          Isa::transpose(words);
          each<Isa::lanes>([&](auto i) ECHOVLM_LAMBDA { store_word<Bits>(words[i.value], i.value, to); });
        } else {
          for (int l = 0; l < Isa::lanes; ++l)
            words[l] = row + l < w.rows ? Isa::load_some(from + l * w.row_bytes, valid) : Isa::set_bytes(0);
          Isa::transpose(words);
          for (std::size_t i = 0; i < valid / 4; ++i) store_word<Bits>(words[i], i, to);
        }
      }
    }
  }

  // Multiplies a panel by M tokens: int32 sums per block, which are scaled and added to float32 sums.
  template <int Bits, int M>
  static void tile(const PanelChunk& chunk, const QuantizedTokens& x, const std::uint32_t* tokens, float* const* out) {
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    const std::uint8_t* weights = chunk.panel;
    const float* scales = chunk.scales;
    const std::int8_t* values[M];
    std::size_t place[M];  // index of a token's scale and sum of its first block
    typename Isa::Float totals[M][kVectors];
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      values[m.value] = x.values + tokens[m.value] * x.stride + chunk.k0;
      place[m.value] = tokens[m.value] * x.scale_stride + chunk.block0;
      each<kVectors>([&](auto v) ECHOVLM_LAMBDA { totals[m.value][v.value] = Isa::load_floats(out[m.value] + v.value * Isa::lanes); });
    });
    std::size_t step = 0;
    for (std::size_t b = 0; b < chunk.blocks; ++b, scales += kRows) {
      typename Isa::Int sums[M][kVectors];
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto begin = Isa::set_int(-zero * x.sums[place[m.value] + b]);
        each<kVectors>([&](auto v) ECHOVLM_LAMBDA { sums[m.value][v.value] = begin; });
      });
      // Two steps per iteration: a processor that issues four instructions per cycle has no slot left for loop overhead.
      for (const std::size_t end = step + chunk.block / 4; step < end; step += 2, weights += 2 * kStepBytes<Bits>) {
        each<2>([&](auto half) ECHOVLM_LAMBDA {
          decltype(Isa::template panel_weights<Bits>(weights)) weight[kVectors];
          each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
            weight[v.value] = Isa::template panel_weights<Bits>(weights + half.value * kStepBytes<Bits> + v.value * kVectorBytes<Bits>);
          });
          each<M>([&](auto m) ECHOVLM_LAMBDA {
            const auto word = Isa::broadcast_word(values[m.value] + 4 * (step + half.value));
            each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
              sums[m.value][v.value] = Isa::template dot<Bits>(sums[m.value][v.value], weight[v.value], word);
            });
          });
        });
      }
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto x_scale = Isa::broadcast(x.scales[place[m.value] + b]);
        each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
          const auto scaled = Isa::multiply(Isa::to_float(sums[m.value][v.value]), Isa::load_floats(scales + v.value * Isa::lanes));
          totals[m.value][v.value] = Isa::multiply_add(scaled, x_scale, totals[m.value][v.value]);
        });
      });
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      each<kVectors>([&](auto v) ECHOVLM_LAMBDA { Isa::store_floats(out[m.value] + v.value * Isa::lanes, totals[m.value][v.value]); });
    });
  }

  template <int Bits, int M>
  static void tokens(const PanelChunk& chunk, const QuantizedTokens& x, const TokenList& list, std::size_t i, const Accumulator& c) {
    float* out[M];
    for (int m = 0; m < M; ++m) out[m] = c.values + accumulator_row(list, i + m) * c.stride + chunk.row0;
    tile<Bits, M>(chunk, x, list.tokens + i, out);
  }

  template <int Bits>
  static void multiply(const PanelChunk& chunk, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                       Prefetch& prefetch) {
    // Tiles of equal size, the first ones one larger: 8 tokens are 4 + 4, not 6 + 2.
    const auto count = static_cast<std::uint32_t>(list.count);
    const std::uint32_t tiles = (count + Isa::tile_tokens - 1) / Isa::tile_tokens, size = count / tiles, larger = count % tiles;
    prefetch.divide(tiles);
    for (std::uint32_t t = 0, i = 0; t < tiles; ++t) {
      const std::uint32_t some = t < larger ? size + 1 : size;
      prefetch.share();
      switch (some) {
        case 1: tokens<Bits, 1>(chunk, x, list, i, c); break;
        case 2: tokens<Bits, 2>(chunk, x, list, i, c); break;
        case 3: tokens<Bits, 3>(chunk, x, list, i, c); break;
        case 4: tokens<Bits, 4>(chunk, x, list, i, c); break;
        case 5: tokens<Bits, Isa::tile_tokens >= 5 ? 5 : 1>(chunk, x, list, i, c); break;
        default: tokens<Bits, Isa::tile_tokens>(chunk, x, list, i, c); break;
      }
      i += some;
    }
  }
};

}  // namespace
}  // namespace echovlm
