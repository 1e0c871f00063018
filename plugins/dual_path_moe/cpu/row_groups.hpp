// What is made ready for products with rows that are read from memory as they lie, kRows at a time, one for each lane of a vector
// of floats: a stretch of K of the tokens' activations, and the rows' scales by block.
#pragma once

#include "block_weights.hpp"
#include "rows_ahead.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct RowGroups {
  static constexpr int kRows = Isa::lanes;
  static constexpr std::size_t kBytes = 4 * Isa::lanes;
  static constexpr std::size_t kActivationBytes = 16 * 1024;  // half of an L1 cache
  static constexpr std::size_t kMostBlocks = kActivationBytes / 16;
  static constexpr std::size_t kMostRows = 128;  // of a pass over all stretches: they stay in the L2 cache
  static_assert(kActivationBytes + ((3 + kRows) * kMostBlocks + kMostRows) * sizeof(float) <= kScratchBytes);

  template <int Bits>
  static constexpr int parts = Isa::template parts<Bits>;

  template <int Bits>
  static constexpr int values_per_vector = kBytes * 8 / Bits;

  // A stretch of K for M tokens, in the scratch: its activations fit half of an L1 cache.
  struct Stretch {
    RowPart part;
    std::size_t first_block, blocks;
    std::uint8_t* x;       // by vector, token and part
    std::int32_t* begins;  // by block and token: -zero * (sum of activations), and a zero for a row's other lane where its sum is in two
    float* x_scales;       // by block and token
    float* scales;         // of the rows at hand, by block and row
  };

  // Whether every row ends with a whole vector.
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

  // The scales of kRows rows, by block. Asks for those of the rows that come next, because nothing of a row can begin without
  // them, and a hardware prefetcher takes no notice of so few lines.
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
};

}  // namespace
}  // namespace echovlm
