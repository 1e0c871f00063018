// Many tokens: rows unpacked into a panel that the first-level cache holds, then tiles of tokens by rows in registers.
//
//   panel, one step of K (4 values):   | row 0: k k+1 k+2 k+3 | row 1: k .. k+3 | ... | row lanes-1 |   x panel_vectors
//   one activation word, broadcast:    | k k+1 k+2 k+3        | the same        | ...
//
// Isa::dot of the two adds four products to each row's int32 sum, which is scaled into a float one at the end of a block. A packed
// 4-bit word of a row gives two steps: its low nibbles (even k) and its high ones (odd k); the activations are stored in that
// order.
#pragma once

#include "block_weights.hpp"

namespace echovlm {
namespace {

constexpr std::size_t kPanelBytes = 16 * 1024;  // half of a first-level cache

// The scales of `blocks` blocks of each of `rows` rows, by block and row; zeros where there is no such row.
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

// Asks for weights before a panel wants them: its many rows are more streams than a hardware prefetcher follows. Runs of
// several lines of a row, because memory answers neighbours faster; a line at a time between products, because a processor
// that has asked for too many at once waits.
class Prefetch {
 public:
  Prefetch(const BlockWeights& w, std::size_t panel_rows)
      : w_(w), panel_rows_(panel_rows), row_bytes_(w.k * static_cast<std::size_t>(w.bits) / 8) {
    owe(kRun < row_bytes_ ? kRun : row_bytes_);
    rest();
  }

  // As many bytes of every row of a panel are about to be taken: keeps the distance.
  void owe(std::size_t bytes) { owed_ += bytes * panel_rows_; }

  // The next line, if one is owed.
  ECHOVLM_INLINE void line() {
    if (owed_ >= kLine) {
      owed_ -= kLine;
      ask();
    }
  }

  // All that is owed.
  void rest() {
    while (owed_ >= kLine) line();
  }

 private:
  static constexpr std::size_t kRun = 512, kLine = 64;

  void ask() {
    const std::size_t row = panel_ + row_, at = offset_ + in_run_;
    if (row < w_.rows) {
      __builtin_prefetch(w_.values + row * w_.row_bytes + at, 0, 2);
      if (in_run_ == 0) {
        const std::size_t scale = row * w_.scale_stride + at * 8 / static_cast<std::size_t>(w_.bits) / w_.block;
        __builtin_prefetch(static_cast<const std::uint8_t*>(w_.scales) + scale * (w_.half_scales ? 2 : 4), 0, 2);
      }
    }
    in_run_ += kLine;
    if (in_run_ < kRun && at + kLine < row_bytes_) return;
    in_run_ = 0;
    if (++row_ < panel_rows_) return;
    row_ = 0;
    offset_ += kRun;
    if (offset_ < row_bytes_) return;
    offset_ = 0;
    panel_ += panel_rows_;
  }

  const BlockWeights& w_;
  const std::size_t panel_rows_, row_bytes_;
  std::size_t panel_ = 0, row_ = 0, offset_ = 0, in_run_ = 0, owed_ = 0;
};

// Unpacks each kRows rows by chunk of K, then multiplies. `Panel` lays out kRows bytes for a value of K.
template <class Panel>
void panel_product(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                   std::uint8_t* scratch) {
  constexpr std::size_t rows = Panel::kRows, chunk = kPanelBytes / rows / 128 * 128, most_blocks = chunk / 16;
  static_assert(rows <= kAccumulatorPadding && chunk >= 128);
  static_assert(rows * chunk + rows * most_blocks * sizeof(float) <= kScratchBytes);
  auto* scales = reinterpret_cast<float*>(scratch + rows * chunk);  // by block and row
  Prefetch prefetch(w, rows);
  for (std::size_t row0 = 0; row0 < w.rows; row0 += rows) {
    for (std::size_t k0 = 0; k0 < w.k; k0 += chunk) {
      const std::size_t k = w.k - k0 < chunk ? w.k - k0 : chunk, blocks = k / w.block;
      prefetch.rest();
      prefetch.owe(k * static_cast<std::size_t>(w.bits) / 8);
      if (w.bits == 4)
        Panel::template unpack<4>(w, row0, k0, k, scratch);
      else
        Panel::template unpack<8>(w, row0, k0, k, scratch);
      transpose_scales(w, row0, rows, k0 / w.block, blocks, scales);
      if (w.bits == 4)
        Panel::template multiply<4>(scratch, scales, w.block, blocks, x, k0, list, c, row0, prefetch);
      else
        Panel::template multiply<8>(scratch, scales, w.block, blocks, x, k0, list, c, row0, prefetch);
    }
  }
}

template <class Isa>
struct TilePanel {
  static constexpr std::size_t kBytes = 4 * Isa::lanes;
  static constexpr std::size_t kVectors = Isa::panel_vectors;
  static constexpr std::size_t kRows = Isa::lanes * kVectors;

  // Word i of every row, as one or two steps of the panel.
  template <int Bits>
  static ECHOVLM_INLINE void store_word(typename Isa::Bytes word, std::size_t i, std::uint8_t* to) {
    if constexpr (Bits == 4) {
      Isa::store(to + 2 * i * kVectors * kBytes, Isa::low(word));
      Isa::store(to + (2 * i + 1) * kVectors * kBytes, Isa::high(word));
    } else {
      Isa::store(to + i * kVectors * kBytes, Isa::stored8(word));
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
        std::uint8_t* to = panel + (at * 8 / Bits / 4 * kVectors + v) * kBytes;
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

  // M tokens against a panel's chunk of K: integer sums for each block, which are scaled into float sums.
  template <int Bits, int M>
  static void tile(const std::uint8_t* panel, const float* scales, std::size_t block, std::size_t blocks,
                   const QuantizedTokens& x, std::size_t k0, const std::uint32_t* tokens, float* const* out,
                   Prefetch& prefetch) {
    constexpr int zero = Bits == 4 ? Isa::zero4 : Isa::zero8;
    const std::int8_t* values[M];
    typename Isa::Float totals[M][kVectors];
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      values[m.value] = x.values + tokens[m.value] * x.stride + k0;
      each<kVectors>([&](auto v) ECHOVLM_LAMBDA { totals[m.value][v.value] = Isa::load_floats(out[m.value] + v.value * Isa::lanes); });
    });
    std::size_t step = 0;
    for (std::size_t b = 0; b < blocks; ++b) {
      typename Isa::Int sums[M][kVectors];
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto begin = Isa::set_int(-zero * x.sums[tokens[m.value] * x.scale_stride + k0 / block + b]);
        each<kVectors>([&](auto v) ECHOVLM_LAMBDA { sums[m.value][v.value] = begin; });
      });
      for (const std::size_t end = step + block / 4; step < end; ++step) {
        prefetch.line();
        typename Isa::Bytes weight[kVectors];
        each<kVectors>([&](auto v) ECHOVLM_LAMBDA { weight[v.value] = Isa::load(panel + (step * kVectors + v.value) * kBytes); });
        each<M>([&](auto m) ECHOVLM_LAMBDA {
          const auto word = Isa::broadcast_word(values[m.value] + 4 * step);
          each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
            sums[m.value][v.value] = Isa::template dot<Bits>(sums[m.value][v.value], weight[v.value], word);
          });
        });
      }
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto x_scale = Isa::broadcast(x.scales[tokens[m.value] * x.scale_stride + k0 / block + b]);
        each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
          const auto scale = Isa::load_floats(scales + b * kRows + v.value * Isa::lanes);
          const auto scaled = Isa::multiply(Isa::to_float(sums[m.value][v.value]), scale);
          totals[m.value][v.value] = Isa::multiply_add(scaled, x_scale, totals[m.value][v.value]);
        });
      });
    }
    each<M>([&](auto m) ECHOVLM_LAMBDA {
      each<kVectors>([&](auto v) ECHOVLM_LAMBDA { Isa::store_floats(out[m.value] + v.value * Isa::lanes, totals[m.value][v.value]); });
    });
  }

  template <int Bits, int M>
  static void tokens(const std::uint8_t* panel, const float* scales, std::size_t block, std::size_t blocks,
                     const QuantizedTokens& x, std::size_t k0, const TokenList& list, std::size_t i, const Accumulator& c,
                     std::size_t row0, Prefetch& prefetch) {
    float* out[M];
    for (int m = 0; m < M; ++m) out[m] = c.values + accumulator_row(list, i + m) * c.stride + row0;
    tile<Bits, M>(panel, scales, block, blocks, x, k0, list.tokens + i, out, prefetch);
  }

  template <int Bits>
  static void multiply(const std::uint8_t* panel, const float* scales, std::size_t block, std::size_t blocks,
                       const QuantizedTokens& x, std::size_t k0, const TokenList& list, const Accumulator& c, std::size_t row0,
                       Prefetch& prefetch) {
    // Tiles of equal size: 8 tokens are 4 + 4, not 6 + 2.
    const std::size_t tiles = (list.count + Isa::tile_tokens - 1) / Isa::tile_tokens;
    for (std::size_t t = 0; t < tiles; ++t) {
      const std::size_t i = t * list.count / tiles, count = (t + 1) * list.count / tiles - i;
      switch (count) {
        case 1: tokens<Bits, 1>(panel, scales, block, blocks, x, k0, list, i, c, row0, prefetch); break;
        case 2: tokens<Bits, 2>(panel, scales, block, blocks, x, k0, list, i, c, row0, prefetch); break;
        case 3: tokens<Bits, 3>(panel, scales, block, blocks, x, k0, list, i, c, row0, prefetch); break;
        case 4: tokens<Bits, 4>(panel, scales, block, blocks, x, k0, list, i, c, row0, prefetch); break;
        case 5: tokens<Bits, Isa::tile_tokens >= 5 ? 5 : 1>(panel, scales, block, blocks, x, k0, list, i, c, row0, prefetch); break;
        default: tokens<Bits, Isa::tile_tokens>(panel, scales, block, blocks, x, k0, list, i, c, row0, prefetch); break;
      }
    }
  }
};

}  // namespace
}  // namespace echovlm
