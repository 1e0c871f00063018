// Code shared by all products of block-wise quantized weights with int8 activations.
//
// int32 sums live for one block of K, then are scaled to float32: block sums are exact, and the float sums run over blocks in the
// same order whatever the number of threads and of tokens. So a token's result does not depend on who is in its call.
//
// Kernels multiply weights as stored, q + zero. To correct for the zero point, sums start at -zero * (sum of activations).
#pragma once

#include "float_product.hpp"
#include "kernels.hpp"

namespace echovlm {
namespace {

constexpr std::size_t kAnyNumber = ~std::size_t{0};  // value of Isa::few_tokens<Bits>: any number of tokens

// Dot products for instruction sets with one instruction that sums four int8 products into an int32 lane (Isa::dot).
template <class Isa>
struct WholeDots {
  static constexpr int sums_in_flight = 12;  // independent sums that hide the instruction's latency

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
  // A vector of a panel's weights, as Isa::dot takes it: with 8 bits as they are stored.
  template <int Bits>
  static constexpr std::size_t panel_copies = 1;
  template <int Bits>
  static auto panel_weights(const std::uint8_t* from) {
    return Isa::load(from);
  }
  template <class Bytes>
  static void store_panel8(std::uint8_t* to, Bytes weights) {
    Isa::store(to, Isa::stored8(weights));
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

// Prefetches all cache lines of these bytes.
inline void ask_for(const std::uint8_t* p, std::size_t bytes) {
  for (std::size_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at);
  __builtin_prefetch(p + bytes - 1);
}

// Copies activations, `values` of K from `k0` on for M tokens, into the order in which row products read them:
//
//   for each vector of packed weights | token 0: part 0, part 1 | token 1: part 0, part 1 | ... | token M-1 |
//
// Parts are the vectors that a vector of packed weights unpacks to (4 bits: low and high nibbles).
template <class Isa, int Bits, int M>
void arrange_tokens(const QuantizedTokens& x, const std::uint32_t* tokens, std::size_t k0, std::size_t values, std::uint8_t* to) {
  constexpr std::size_t bytes = 4 * Isa::lanes, step = bytes * 8 / Bits;
  for (std::size_t k = 0; k < values; k += step) {
    const std::size_t valid = values - k < step ? values - k : step;
    for (int m = 0; m < M; ++m) {
      typename Isa::Bytes parts[Isa::template parts<Bits>];
      Isa::template arrange<Bits>(x.values + tokens[m] * x.stride + k0 + k, valid, parts);
      for (const auto& part : parts) {
        Isa::store(to, part);
        to += bytes;
      }
    }
  }
}

// Returns `count` rows from `first` on; the rows after them, if any, become the ones to prefetch next.
inline BlockWeights some_rows(const BlockWeights& w, std::size_t first, std::size_t count) {
  const auto values = [&](std::size_t row) { return w.values + row * w.row_bytes; };
  const auto scales = [&](std::size_t row) {
    return static_cast<const std::uint8_t*>(w.scales) + row * w.scale_stride * (w.half_scales ? 2 : 4);
  };
  BlockWeights some = w;
  some.values = values(first);
  some.scales = scales(first);
  some.rows = count;
  if (first + count < w.rows) {
    some.next_values = values(first + count);
    some.next_scales = scales(first + count);
  }
  return some;
}

// Calls body(rows, accumulator of these rows) for at most `most` rows at a time, so that their sums fit the scratch.
template <class Body>
void each_rows(const BlockWeights& w, const Accumulator& c, std::size_t most, Body&& body) {
  for (std::size_t r = 0; r < w.rows; r += most)
    body(some_rows(w, r, w.rows - r < most ? w.rows - r : most), Accumulator{c.values + r, c.stride});
}

}  // namespace
}  // namespace echovlm
