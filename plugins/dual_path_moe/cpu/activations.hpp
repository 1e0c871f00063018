// Loops over activations that the compiler vectorizes: block-wise quantization, SwiGLU and quick GELU.
#pragma once

#include "float_product.hpp"

namespace echovlm {
namespace {

// 1.5 * 2^23: adding and then subtracting it rounds to an integer, half to even.
constexpr float kRounder = 12582912.0f;

// e^x with a relative error below 2e-7. x is clamped to -87 .. 88; NaN gives NaN.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  // Taylor's coefficients up to r^7, |r| <= ln(2) / 2.
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * float_of_bits((bits_of_float(shifted) << 23) + 0x3f800000u);
}

// divisors = 1 + e^(factor * x). A loop of its own: in one with the division by them, GCC 12 divides on each side of
// `exponential`'s bounds, which takes four times as long.
inline void sigmoid_divisors(const float* x, float factor, std::size_t count, float* divisors) {
  for (std::size_t i = 0; i < count; ++i) divisors[i] = 1.0f + exponential(factor * x[i]);
}

constexpr std::size_t kActivatedTogether = 64;

inline void swiglu(float* gate, const float* up, std::size_t count, float weight) {
  float divisors[kActivatedTogether];
  for (std::size_t first = 0; first < count; first += kActivatedTogether, gate += kActivatedTogether, up += kActivatedTogether) {
    const std::size_t some = count - first < kActivatedTogether ? count - first : kActivatedTogether;
    sigmoid_divisors(gate, -1.0f, some, divisors);
    for (std::size_t i = 0; i < some; ++i) gate[i] = gate[i] / divisors[i] * up[i] * weight;
  }
}

inline void quick_gelu(float* x, std::size_t count) {
  float divisors[kActivatedTogether];
  for (std::size_t first = 0; first < count; first += kActivatedTogether, x += kActivatedTogether) {
    const std::size_t some = count - first < kActivatedTogether ? count - first : kActivatedTogether;
    sigmoid_divisors(x, -1.702f, some, divisors);
    for (std::size_t i = 0; i < some; ++i) x[i] /= divisors[i];
  }
}

// Reorders eight bytes, even positions first:  0 1 2 3 4 5 6 7  ->  0 2 4 6 1 3 5 7
inline std::uint64_t evens_first(std::uint64_t v) {
  std::uint64_t t = ((v >> 8) ^ v) & 0x0000ff000000ff00ull;
  v ^= t ^ (t << 8);
  t = ((v >> 16) ^ v) & 0x00000000ffff0000ull;
  return v ^ t ^ (t << 16);
}

inline void quantize_block(const float* x, std::size_t count, int bits, float weight, std::int8_t* q, float* scale,
                           std::int32_t* sum) {
  // The largest |x|, found on the floats' bits: as integers they have the same order, and NaN and infinity are the largest.
  std::uint32_t peak_bits = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint32_t magnitude = bits_of_float(x[i]) & 0x7fffffffu;
    peak_bits = magnitude > peak_bits ? magnitude : peak_bits;
  }
  *sum = 0;
  const float peak = float_of_bits(peak_bits);
  const bool finite = peak_bits < 0x7f800000u;
  if (!finite || peak < 1.5e-36f) {  // below this, 127 / peak would overflow
    std::memset(q, 0, count);
    *scale = finite ? 0.0f * weight : float_of_bits(0x7fc00000u);
    return;
  }
  const float inverse = 127.0f / peak;
  alignas(64) std::int8_t ordered[128];
  std::int32_t total = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t value = static_cast<std::int32_t>(bits_of_float(x[i] * inverse + kRounder) - 0x4b400000u);
    total += value;
    ordered[i] = static_cast<std::int8_t>(value);
  }
  if (bits == 4) {
    for (std::size_t i = 0; i < count; i += 8) {
      std::uint64_t eight;
      std::memcpy(&eight, ordered + i, 8);
      eight = evens_first(eight);
      std::memcpy(ordered + i, &eight, 8);
    }
  }
  std::memcpy(q, ordered, count);
  *sum = total;
  *scale = peak / 127.0f * weight;
}

inline void quantize(const float* x, std::size_t k, std::size_t block, int bits, float weight, std::int8_t* q, float* scales,
                     std::int32_t* sums) {
  for (std::size_t b = 0; b < k / block; ++b)
    quantize_block(x + b * block, block, bits, weight, q + b * block, scales + b, sums + b);
}

}  // namespace
}  // namespace echovlm
