// NEON with the dot-product instruction (ARMv8.2): sdot adds four signed int8 products to each of four int32 lanes.
#pragma once

#include <arm_neon.h>

#include "kernel_table.hpp"

namespace echovlm {
namespace {

struct Neon : WholeDots<Neon> {
  using Bytes = int8x16_t;
  using Int = int32x4_t;
  using Float = float32x4_t;
  static constexpr int lanes = 4;
  static constexpr int panel_vectors = 4;  // 6 tokens x 4 vectors of sums, 4 of weights and a word: 29 of 32 registers
  static constexpr int tile_tokens = 6;
  static constexpr int attention_rows = 8;  // x 2 vectors of sums, 2 of keys or values and a query: 19 of 32 registers
  template <int Bits>
  static constexpr std::size_t few_tokens = 3;
  static constexpr bool interleaves_rows = false;
  static constexpr std::size_t prefetch_bytes = 512;
  static constexpr int prefetch_level = 0;
  static constexpr int zero4 = 8, zero8 = 0;

  static Bytes load(const void* p) { return vld1q_s8(static_cast<const std::int8_t*>(p)); }
  static Bytes load_some(const void* p, std::size_t bytes) {
    std::int8_t whole[16] = {};
    std::memcpy(whole, p, bytes < 16 ? bytes : 16);
    return vld1q_s8(whole);
  }
  static void store(void* p, Bytes v) { vst1q_s8(static_cast<std::int8_t*>(p), v); }
  static Bytes set_bytes(int value) { return vdupq_n_s8(static_cast<std::int8_t>(value)); }
  static Bytes low(Bytes v) { return vandq_s8(v, vdupq_n_s8(15)); }
  static Bytes high(Bytes v) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(v), 4)); }
  static Bytes stored8(Bytes v) { return v; }
  static Bytes either(Bytes a, Bytes b) { return vorrq_s8(a, b); }
  static Bytes broadcast_word(const std::int8_t* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
  }
  static void load_even_odd(const std::int8_t* p, std::size_t bytes, Bytes& even, Bytes& odd) {
    const int32x4_t a = vreinterpretq_s32_s8(bytes >= 16 ? load(p) : load_some(p, bytes));
    const int32x4_t b =
        vreinterpretq_s32_s8(bytes >= 32 ? load(p + 16) : load_some(p + 16, bytes > 16 ? bytes - 16 : 0));
    even = vreinterpretq_s8_s32(vuzp1q_s32(a, b));
    odd = vreinterpretq_s8_s32(vuzp2q_s32(a, b));
  }

  static Int add(Int a, Int b) { return vaddq_s32(a, b); }
  // The sums of a's two pairs of lanes, then of b's.
  static Int add_pairs(Int a, Int b) { return vpaddq_s32(a, b); }
  // Four rows' lanes, two rows' sums of pairs in a vector: their sums, by row, or those of each block in them.
  static void add_lanes(const Int (&pairs)[2], Int (&sums)[1]) { sums[0] = add_pairs(pairs[0], pairs[1]); }
  static void add_lanes(const Int (&pairs)[2], Int (&sums)[2]) {
    sums[0] = vuzp1q_s32(pairs[0], pairs[1]);
    sums[1] = vuzp2q_s32(pairs[0], pairs[1]);
  }
  static Bytes as_bytes(Float v) { return vreinterpretq_s8_f32(v); }
  static Float as_floats(Bytes v) { return vreinterpretq_f32_s8(v); }
  static Int set_int(std::int32_t value) { return vdupq_n_s32(value); }
  template <int Bits>
  static Int dot(Int sum, Bytes weight, Bytes x) {
    return vdotq_s32(sum, weight, x);
  }

  static Float to_float(Int v) { return vcvtq_f32_s32(v); }
  static Float broadcast(float v) { return vdupq_n_f32(v); }
  static Float multiply(Float a, Float b) { return vmulq_f32(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float add_floats(Float a, Float b) { return vaddq_f32(a, b); }
  static Float subtract(Float a, Float b) { return vsubq_f32(a, b); }
  static Float larger(Float a, Float b) { return vmaxq_f32(a, b); }  // NaN where either is
  static Float smaller(Float a, Float b) { return vminq_f32(a, b); }  // likewise
  static float largest(Float v) { return vmaxvq_f32(v); }
  static Float round(Float v) { return vrndnq_f32(v); }
  // n an integer, v times 2^n a normal number.
  static Float times_power_of_two(Float v, Float n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), vshlq_n_s32(vcvtq_s32_f32(n), 23)));
  }
  static Float load_floats(const float* p) { return vld1q_f32(p); }
  static Float load_some_floats(const float* p, std::size_t count) {
    float whole[4] = {};
    std::memcpy(whole, p, (count < 4 ? count : 4) * sizeof(float));
    return vld1q_f32(whole);
  }
  static Float load_some_halves(const std::uint16_t* p, std::size_t count) {
    std::uint16_t whole[4] = {};
    std::memcpy(whole, p, (count < 4 ? count : 4) * sizeof *p);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(whole)));
  }
  static void store_floats(float* p, Float v) { vst1q_f32(p, v); }
  static float sum(Float v) { return vaddvq_f32(v); }
  static void transpose(Bytes (&words)[4]) {
    const int32x4x2_t a = vtrnq_s32(vreinterpretq_s32_s8(words[0]), vreinterpretq_s32_s8(words[1]));
    const int32x4x2_t b = vtrnq_s32(vreinterpretq_s32_s8(words[2]), vreinterpretq_s32_s8(words[3]));
    words[0] = vreinterpretq_s8_s32(vcombine_s32(vget_low_s32(a.val[0]), vget_low_s32(b.val[0])));
    words[1] = vreinterpretq_s8_s32(vcombine_s32(vget_low_s32(a.val[1]), vget_low_s32(b.val[1])));
    words[2] = vreinterpretq_s8_s32(vcombine_s32(vget_high_s32(a.val[0]), vget_high_s32(b.val[0])));
    words[3] = vreinterpretq_s8_s32(vcombine_s32(vget_high_s32(a.val[1]), vget_high_s32(b.val[1])));
  }
};

}  // namespace
}  // namespace echovlm
