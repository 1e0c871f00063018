// Product of floating-point weights: tiles of four rows by four tokens; 16-bit weights are widened to float32 1,024 values at a time.
#pragma once

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include <cstring>
#include <utility>

#include "kernels.hpp"

namespace echovlm {
namespace {

template <bool Value>
struct Constant {
  static constexpr bool value = Value;
};

template <int Value>
struct Integer {
  static constexpr int value = Value;
};

#define ECHOVLM_INLINE __attribute__((always_inline)) inline
#define ECHOVLM_LAMBDA __attribute__((always_inline))

template <class Body, std::size_t... I>
ECHOVLM_INLINE void each(Body&& body, std::index_sequence<I...>) {
  (body(Integer<static_cast<int>(I)>{}), ...);
}

// Calls body(Integer<0>) ... body(Integer<N - 1>). With indices known at compile time, GCC keeps arrays of vectors in registers;
// it unrolls an ordinary loop too late for that, and would store every sum at every step.
template <std::size_t N, class Body>
ECHOVLM_INLINE void each(Body&& body) {
  each(static_cast<Body&&>(body), std::make_index_sequence<N>{});
}

inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float half_to_float(std::uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#elif defined(__ARM_FP16_FORMAT_IEEE)
  __fp16 value;
  std::memcpy(&value, &half, sizeof value);
  return value;
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
  // After the shift the exponent is 112 too small. Multiplying by 2^112 corrects it, also for subnormal halves.
  const float scaled = float_of_bits(magnitude << 13) * float_of_bits((127 + 112) << 23);
  const std::uint32_t finite = bits_of_float(scaled);
  return float_of_bits(sign | (magnitude >= 0x7c00 ? finite | 0x7f800000 : finite));
#endif
}

// Rounded half to even.
inline std::uint16_t float_to_half(float value) {
#if defined(__F16C__)
  return _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__ARM_FP16_FORMAT_IEEE)
  const __fp16 half = static_cast<__fp16>(value);
  std::uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
#else
  const std::uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);  // rounds to 65,536 or above: infinity
  // Below the smallest normal half, adding 1/2 leaves the half's bits at the float's end, rounded.
  if (magnitude < 0x38800000)
    return static_cast<std::uint16_t>(sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f)));
  return static_cast<std::uint16_t>(sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - ((127u - 15u) << 23)) >> 13));
#endif
}

inline void widen_half(const std::uint16_t* from, std::size_t count, float* to) {
  std::size_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
#endif
  for (; i < count; ++i) to[i] = half_to_float(from[i]);
}

inline void widen_bfloat(const std::uint16_t* from, std::size_t count, float* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = float_of_bits(static_cast<std::uint32_t>(from[i]) << 16);
}

template <class Isa>
struct FloatProduct {
  static constexpr std::size_t kStretch = 1024;  // values of K at a time: four rows of them fill half of the L1 cache

  template <int R, int M>
  static void tile(const float* const* weight, const float* const* x, std::size_t k, float (&out)[R][M]) {
    typename Isa::Float sums[R][M];
    each<R>([&](auto r) ECHOVLM_LAMBDA { each<M>([&](auto m) ECHOVLM_LAMBDA { sums[r.value][m.value] = Isa::broadcast(0.0f); }); });
    const auto advance = [&](std::size_t at, auto load) ECHOVLM_LAMBDA {
      typename Isa::Float w[R];
      each<R>([&](auto r) ECHOVLM_LAMBDA { w[r.value] = load(weight[r.value] + at); });
      each<M>([&](auto m) ECHOVLM_LAMBDA {
        const auto value = load(x[m.value] + at);
        each<R>([&](auto r) ECHOVLM_LAMBDA {
          sums[r.value][m.value] = Isa::multiply_add(w[r.value], value, sums[r.value][m.value]);
        });
      });
    };
    std::size_t at = 0;
    for (; at + Isa::lanes <= k; at += Isa::lanes) advance(at, [](const float* p) { return Isa::load_floats(p); });
    if (at < k) advance(at, [left = k - at](const float* p) { return Isa::load_some_floats(p, left); });
    each<R>([&](auto r) ECHOVLM_LAMBDA { each<M>([&](auto m) ECHOVLM_LAMBDA { out[r.value][m.value] = Isa::sum(sums[r.value][m.value]); }); });
  }

  template <int R, int M>
  static void tokens(const float* const* weight, std::size_t k, const FloatTokens& x, std::size_t k0,
                     const TokenList& list, std::size_t i, const Accumulator& c, std::size_t row) {
    const float* values[M];
    for (int m = 0; m < M; ++m) values[m] = x.values + list.tokens[i + m] * x.stride + k0;
    float out[R][M];
    tile<R, M>(weight, values, k, out);
    for (int m = 0; m < M; ++m) {
      const std::size_t place = list.by_token ? list.tokens[i + m] - list.first : i + m;
      for (int r = 0; r < R; ++r) c.values[place * c.stride + row + r] += out[r][m];
    }
  }

  template <int R>
  static void rows(const FloatWeights& w, std::size_t row, const FloatTokens& x, const TokenList& list,
                   const Accumulator& c) {
    alignas(64) float wide[R][kStretch];
    for (std::size_t k0 = 0; k0 < w.k; k0 += kStretch) {
      const std::size_t k = w.k - k0 < kStretch ? w.k - k0 : kStretch;
      const float* weight[R];
      for (int r = 0; r < R; ++r) {
        const std::size_t at = (row + r) * w.stride + k0;
        const auto* narrow = static_cast<const std::uint16_t*>(w.values) + at;
        weight[r] = wide[r];
        if (w.type == FloatType::kFloat32)
          weight[r] = static_cast<const float*>(w.values) + at;
        else if (w.type == FloatType::kFloat16)
          widen_half(narrow, k, wide[r]);
        else
          widen_bfloat(narrow, k, wide[r]);
      }
      std::size_t i = 0;
      for (; i + 4 <= list.count; i += 4) tokens<R, 4>(weight, k, x, k0, list, i, c, row);
      for (; i < list.count; ++i) tokens<R, 1>(weight, k, x, k0, list, i, c, row);
    }
  }

  static void run(const FloatWeights& w, const FloatTokens& x, const TokenList& list, const Accumulator& c) {
    std::size_t row = 0;
    for (; row + 4 <= w.rows; row += 4) rows<4>(w, row, x, list, c);
    for (; row < w.rows; ++row) rows<1>(w, row, x, list, c);
  }
};

}  // namespace
}  // namespace echovlm
