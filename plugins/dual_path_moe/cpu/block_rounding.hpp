// Rounds weights to codes of 4 or 8 bits, each block's scale by search: ../rounding.py says how, and every kernel gives its bits.
//
// A lane of a vector is one candidate, so that a block is summed value after value whatever the number of lanes:
//
//   1 / candidate scale:   | candidate 0 | candidate 1 | ... | lanes-1 |   x kVectors
//   a value, broadcast:    | w[k]        | the same    | ...
#pragma once

#include "activations.hpp"

namespace echovlm {
namespace {

template <class Isa>
struct BlockRounding {
  static constexpr std::size_t kVectors = Isa::lanes >= 8 ? 2 : 4;
  static constexpr std::size_t kTogether = kVectors * Isa::lanes;  // candidates
  static_assert(kRoundingCandidates % kTogether == 0);

  // The sums over a block that decide kTogether candidates: importance * w * q, and importance * q * q.
  template <bool Weighted>
  static void sums(const Rounding& how, const float* w, const float* importance, const float* inverses, float* products, float* squares) {
    using Float = typename Isa::Float;
    const Float least = Isa::broadcast(lowest(how)), most = Isa::broadcast(highest(how));
    Float inverse[kVectors], product[kVectors], square[kVectors];
    each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
      inverse[v.value] = Isa::load_floats(inverses + v.value * Isa::lanes);
      product[v.value] = square[v.value] = Isa::broadcast(0.0f);
    });
    for (std::size_t k = 0; k < how.block; ++k) {
      const Float value = Isa::broadcast(w[k]);
      const Float factor = Isa::broadcast(Weighted ? importance[k] : 1.0f), weighted = Weighted ? Isa::multiply(value, factor) : value;
      each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
        const Float code = Isa::round(Isa::smaller(Isa::larger(Isa::multiply(value, inverse[v.value]), least), most));
        product[v.value] = Isa::add_floats(product[v.value], Isa::multiply(weighted, code));
        square[v.value] = Isa::add_floats(square[v.value], Isa::multiply(Weighted ? Isa::multiply(code, factor) : code, code));
      });
    }
    each<kVectors>([&](auto v) ECHOVLM_LAMBDA {
      Isa::store_floats(products + v.value * Isa::lanes, product[v.value]);
      Isa::store_floats(squares + v.value * Isa::lanes, square[v.value]);
    });
  }

  static float lowest(const Rounding& how) { return how.bits == 4 ? -8.0f : -127.0f; }
  static float highest(const Rounding& how) { return how.bits == 4 ? 7.0f : 127.0f; }

  // The value of the scales' type that is nearest to each, half to even; loops that the compiler vectorizes.
  static void as_stored(FloatType type, float* scales, std::size_t count) {
    for (std::size_t i = 0; i < count && type == FloatType::kFloat16; ++i) {
      const std::uint32_t bits = bits_of_float(scales[i]), sign = bits & 0x80000000u, magnitude = bits & 0x7fffffffu;
      const std::uint32_t normal = (magnitude + 0xfff + (magnitude >> 13 & 1)) & ~0x1fffu;
      const std::uint32_t subnormal = bits_of_float((float_of_bits(magnitude) + 0.5f) - 0.5f);  // whole steps of 2^-24
      const std::uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
      const std::uint32_t nearest = magnitude >= 0x477ff000u ? (magnitude > 0x7f800000u ? magnitude : 0x7f800000u) : finite;
      scales[i] = float_of_bits(sign | nearest);
    }
    for (std::size_t i = 0; i < count && type == FloatType::kBFloat16; ++i) {
      const std::uint32_t bits = bits_of_float(scales[i]), nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
      scales[i] = float_of_bits((bits & 0x7fffffffu) > 0x7f800000u ? bits : nearest);
    }
  }

  // NaN where no candidate gives finite sums.
  static float best_scale(const Rounding& how, const float* w, const float* importance, float peak) {
    const std::size_t count = how.candidates;
    alignas(64) float inverses[kRoundingCandidates] = {}, products[kRoundingCandidates], squares[kRoundingCandidates];
    for (std::size_t c = 0; c < count; ++c) inverses[c] = how.divisors[c] / peak;
    for (std::size_t c = 0; c < count; c += kTogether) {
      if (importance)
        sums<true>(how, w, importance, inverses + c, products + c, squares + c);
      else
        sums<false>(how, w, importance, inverses + c, products + c, squares + c);
    }
    float scales[kRoundingCandidates], errors[kRoundingCandidates];
    for (std::size_t c = 0; c < count; ++c) scales[c] = products[c] / squares[c];
    as_stored(how.scale_type, scales, count);
    for (std::size_t c = 0; c < count; ++c) errors[c] = scales[c] * (scales[c] * squares[c] - 2.0f * products[c]);
    float least = float_of_bits(0x7f800000u), best = float_of_bits(0x7fc00000u);
    for (std::size_t c = 0; c < count; ++c) {
      const bool better = errors[c] < least;
      least = better ? errors[c] : least;
      best = better ? scales[c] : best;
    }
    return best;
  }

  static void round_block(const Rounding& how, const float* w, const float* importance, std::int8_t* codes, float* scale) {
    std::uint32_t peak_bits = 0;  // floats without a sign have their bits' order; NaN is the largest
    for (std::size_t k = 0; k < how.block; ++k) {
      const std::uint32_t magnitude = bits_of_float(w[k]) & 0x7fffffffu;
      peak_bits = magnitude > peak_bits ? magnitude : peak_bits;
    }
    const float peak = float_of_bits(peak_bits);
    const float best = peak < kSmallestPeak ? 0.0f : best_scale(how, w, importance, peak);
    *scale = best;
    if (!(best < 0.0f || best > 0.0f)) {
      std::memset(codes, 0, how.block);
      return;
    }
    const float inverse = 1.0f / best, least = lowest(how), most = highest(how);
    for (std::size_t k = 0; k < how.block; ++k) {
      float value = w[k] * inverse;
      value = value > least ? value : least;
      value = value < most ? value : most;
      codes[k] = static_cast<std::int8_t>(bits_of_float(value + kRounder) - 0x4b400000u);
    }
  }

  static void run(const Rounding& how, const float* w, const float* importance, std::size_t columns, std::int8_t* codes, float* scales) {
    for (std::size_t at = 0; at < columns; at += how.block)
      round_block(how, w + at, importance ? importance + at : nullptr, codes + at, scales + at / how.block);
  }
};

}  // namespace
}  // namespace echovlm
