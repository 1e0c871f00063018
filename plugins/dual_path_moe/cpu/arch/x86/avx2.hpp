// AVX2, with or without AVX-VNNI.
#pragma once

#include <immintrin.h>

#include <type_traits>

#include "kernel_table.hpp"

namespace echovlm {
namespace {

// Dot products without VNNI, from instructions that add pairs of products.
//
// 4-bit weights: maddubs adds pairs into 16-bit lanes; a block adds four of them, at most 4 * 2 * 15 * 127 = 15,240, which fits.
// 8-bit weights: a pair reaches 2 * 127 * 127, which may overflow 16 bits. Both operands are widened to 16 bits first, even and odd
// values separately, so that each 32-bit lane still sums the same four values of K:
//
//   bytes of a lane:    | k | k+1 | k+2 | k+3 |
//   parts[0], 16 bits:  | k       | k+2       |
//   parts[1], 16 bits:  | k+1     | k+3       |
//
// In a panel, which many tokens share, 8-bit weights lie twice, as magnitudes and with their signs: w x = |w| (sign(w) x). Then maddubs
// takes them: the two products of a pair reach 2 * 127 * 127 = 32,258, which fits 16 bits. Four instructions for 32 products, as many
// as two multiply-adds in 16 bits take with their additions, but nothing of the activations has to be widened.
struct SignedWeights {
  __m256i magnitudes, values;
};

template <class Isa>
struct PairDots {
  static constexpr int sums_in_flight = 4;  // independent sums; the addition has a latency of one cycle

  template <int Bits>
  static constexpr int parts = 2;

  static void widen(__m256i bytes, __m256i (&parts)[2]) {
    parts[0] = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
    parts[1] = _mm256_srai_epi16(bytes, 8);
  }
  template <int Bits>
  static void unpack(__m256i packed, __m256i (&stored)[2]) {
    if constexpr (Bits == 4) {
      stored[0] = Isa::low(packed);
      stored[1] = Isa::high(packed);
    } else {
      widen(packed, stored);
    }
  }
  template <int Bits>
  static void arrange(const std::int8_t* from, std::size_t valid, __m256i (&x)[2]) {
    if constexpr (Bits == 4)
      Isa::load_even_odd(from, valid, x[0], x[1]);
    else
      widen(valid < 32 ? Isa::load_some(from, valid) : Isa::load(from), x);
  }
  template <int Bits>
  static constexpr std::size_t panel_copies = Bits == 8 ? 2 : 1;
  template <int Bits>
  static auto panel_weights(const std::uint8_t* from) {
    if constexpr (Bits == 8)
      return SignedWeights{Isa::load(from), Isa::load(from + 32)};
    else
      return Isa::load(from);
  }
  static void store_panel8(std::uint8_t* to, __m256i weights) {
    Isa::store(to, _mm256_abs_epi8(weights));
    Isa::store(to + 32, weights);
  }
  static __m256i no_partial() { return _mm256_setzero_si256(); }
  template <int Bits>
  static __m256i partial_dot(__m256i sum, __m256i weight, __m256i x) {
    if constexpr (Bits == 4) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(weight, x));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(weight, x));
  }
  template <int Bits>
  static __m256i whole(__m256i sum) {
    return Bits == 4 ? _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) : sum;
  }
};

template <bool Vnni>
struct Avx2 : std::conditional_t<Vnni, WholeDots<Avx2<true>>, PairDots<Avx2<false>>> {
  using Bytes = __m256i;
  using Int = __m256i;
  using Float = __m256;
  static constexpr int lanes = 8;
  static constexpr int panel_vectors = 2;
  // Tokens x 2 vectors of sums, 1 of activations, and of 16 registers what is left for weights: without VNNI also for their products.
  static constexpr int tile_tokens = Vnni ? 6 : 5;
  static constexpr int attention_rows = 6;  // likewise
  static constexpr int byte_key_vectors = 2, byte_value_vectors = 2;  // attention in bytes, 4 rows: 8 sums, 2 vectors and a query or weight
  // Without VNNI rows of 4-bit weights win at any number of tokens: their sums stay in 16 bits for a whole block.
  template <int Bits>
  static constexpr std::size_t few_tokens = Vnni || Bits == 8 ? 8 : kAnyNumber;
  static constexpr bool interleaves_rows = false;
  static constexpr std::size_t prefetch_bytes = 8192;
  static constexpr int prefetch_level = 3;
  static constexpr int zero4 = 8, zero8 = Vnni ? 128 : 0;

  static Bytes load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Bytes load_some(const void* p, std::size_t bytes) {
    alignas(32) std::uint8_t whole[32] = {};
    std::memcpy(whole, p, bytes < 32 ? bytes : 32);
    return load(whole);
  }
  static void store(void* p, Bytes v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static Bytes set_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
  static Bytes low(Bytes v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
  static Bytes high(Bytes v) { return low(_mm256_srli_epi16(v, 4)); }
  static Bytes stored8(Bytes v) { return Vnni ? _mm256_xor_si256(v, set_bytes(128)) : v; }
  static Bytes either(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
  static Bytes broadcast_word(const std::int8_t* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static void load_even_odd(const std::int8_t* p, std::size_t bytes, Bytes& even, Bytes& odd) {
    const __m256 a = _mm256_castsi256_ps(bytes >= 32 ? load(p) : load_some(p, bytes));
    const __m256 b = _mm256_castsi256_ps(bytes >= 64 ? load(p + 32) : load_some(p + 32, bytes > 32 ? bytes - 32 : 0));
    even = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), 0xd8);
    odd = _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8);
  }

  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int whole_pairs(Int sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
  // Of each four lanes: the sums of a's two pairs, then of b's.
  static Int add_pairs(Int a, Int b) { return _mm256_hadd_epi32(a, b); }
  // Eight rows' lanes, two rows' sums of pairs in a vector: their sums, by row, or those of each block in them.
  template <int Blocks>
  static void add_lanes(const Int (&pairs)[4], Int (&sums)[Blocks]) {
    const auto low_halves = [](Int a, Int b) { return _mm256_permute2x128_si256(a, b, 0x20); };
    const auto high_halves = [](Int a, Int b) { return _mm256_permute2x128_si256(a, b, 0x31); };
    if constexpr (Blocks <= 2) {
      const Int a = add_pairs(pairs[0], pairs[1]), b = add_pairs(pairs[2], pairs[3]);
      if constexpr (Blocks == 1) {
        sums[0] = add(low_halves(a, b), high_halves(a, b));
      } else {
        sums[0] = low_halves(a, b);
        sums[1] = high_halves(a, b);
      }
    } else {
      const auto some = [](Int a, Int b, auto odd) ECHOVLM_LAMBDA {
        return _mm256_castps_si256(_mm256_shuffle_ps(as_floats(a), as_floats(b), odd.value ? 0xdd : 0x88));
      };
      each<2>([&](auto odd) ECHOVLM_LAMBDA {
        const Int a = some(pairs[0], pairs[1], odd), b = some(pairs[2], pairs[3], odd);
        sums[odd.value] = low_halves(a, b);
        sums[2 + odd.value] = high_halves(a, b);
      });
    }
  }
  static Bytes as_bytes(Float v) { return _mm256_castps_si256(v); }
  static Float as_floats(Bytes v) { return _mm256_castsi256_ps(v); }
  static Int set_int(std::int32_t value) { return _mm256_set1_epi32(value); }
  template <int Bits>
  static Int dot(Int sum, Bytes weight, Bytes x) {
    if constexpr (Vnni) {
      // Not _mm256_dpbusd_avx_epi32: see avx512_vnni.cpp.
      asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(weight), "x"(x));
      return sum;
    } else {
      static_assert(Bits == 4);
      return _mm256_add_epi32(sum, whole_pairs(_mm256_maddubs_epi16(weight, x)));
    }
  }
  template <int Bits>
  static Int dot(Int sum, const SignedWeights& weights, Bytes x) {
    return _mm256_add_epi32(sum, whole_pairs(_mm256_maddubs_epi16(weights.magnitudes, _mm256_sign_epi8(x, weights.values))));
  }

  static Int magnitude(Float v) { return _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffffff)); }
  static Int larger(Int a, Int b) { return _mm256_max_epi32(a, b); }
  static std::int32_t largest(Int v) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
  }
  static Int negative(Int v) { return _mm256_sub_epi32(_mm256_setzero_si256(), v); }
  static Int load_ints(const std::int32_t* p) { return load(p); }
  static void store_ints(std::int32_t* p, Int v) { store(p, v); }
  // As in avx512_vnni.cpp, in float32: there are no shifts of 16-bit lanes by each its own count.
  static constexpr float fall_unit = 1;
  static Bytes byte_weights(const Float (&x)[4]) {
    const auto power = [](Float x) ECHOVLM_LAMBDA {
      x = _mm256_min_ps(x, broadcast(126));
      const Float n = round(x), r = subtract(x, n);
      Float p = multiply_add(broadcast(255 * 0.23842693f), r, broadcast(255 * -0.70344794f));
      p = multiply_add(p, r, broadcast(255 * 1.00044327f));
      return _mm256_cvtps_epi32(times_power_of_two(p, subtract(broadcast(0), n)));
    };
    const Int low = _mm256_packs_epi32(power(x[0]), power(x[1]));
    return _mm256_packus_epi16(low, _mm256_packs_epi32(power(x[2]), power(x[3])));
  }
  static constexpr std::size_t place_of_quad(std::size_t q) { return q % 2 * 4 + q / 2; }
  static Int quads(const Float (&v)[4]) {
    const __m256i low = _mm256_set1_epi32(255);
    const __m256i a = _mm256_and_si256(_mm256_cvtps_epi32(v[0]), low), b = _mm256_and_si256(_mm256_cvtps_epi32(v[1]), low);
    const __m256i c = _mm256_and_si256(_mm256_cvtps_epi32(v[2]), low), d = _mm256_cvtps_epi32(v[3]);
    return either(either(a, _mm256_slli_epi32(b, 8)), either(_mm256_slli_epi32(c, 16), _mm256_slli_epi32(d, 24)));
  }
  static void store_bytes(std::uint8_t* p, Float v) {
    const __m256i first_bytes = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
    const __m256i fours = _mm256_shuffle_epi8(_mm256_cvtps_epi32(v), first_bytes);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
  }
  static void largest_of_four(const Float (&v)[4], float* largest) {
    const Float a = _mm256_max_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    const Float b = _mm256_max_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    const Float c = _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));  // of each half: one of each
    _mm_storeu_ps(largest, _mm_max_ps(_mm256_castps256_ps128(c), _mm256_extractf128_ps(c, 1)));
  }

  static Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
  static Float broadcast(float v) { return _mm256_set1_ps(v); }
  static Float multiply(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float add_floats(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float larger(Float a, Float b) { return _mm256_max_ps(a, b); }  // b where either is NaN
  static Float smaller(Float a, Float b) { return _mm256_min_ps(a, b); }  // likewise
  static float largest(Float v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }
  static Float round(Float v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // n an integer, v times 2^n a normal number.
  static Float times_power_of_two(Float v, Float n) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
  }
  static Float load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_some_floats(const float* p, std::size_t count) {
    if (count >= 8) return load_floats(p);
    const Int lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
  }
  static Float load_some_halves(const std::uint16_t* p, std::size_t count) {
    if (count >= 8) return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    alignas(16) std::uint16_t whole[8] = {};
    std::memcpy(whole, p, count * sizeof *p);
    return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(whole)));
  }
  static void store_floats(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static float sum(Float v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }

  // Transposes an 8 x 8 matrix of 32-bit words: words[row] lane w becomes words[w] lane row. Within each 128-bit half, pairs of rows are
  // interleaved by 32-bit words, then by 64-bit words; last, the halves of the registers are exchanged.
  //
  //   a b c d          a e b f          a e i m
  //   e f g h    ->    c g d h    ->    b f j n         (one 4 x 4 part)
  //   i j k l          i m j n          c g k o
  //   m n o p          k o l p          d h l p
  static void transpose(Bytes (&words)[8]) {
    Bytes t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_epi32(words[i], words[i + 1]);
      t[i + 1] = _mm256_unpackhi_epi32(words[i], words[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
      words[i] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x20);
      words[i + 4] = _mm256_permute2x128_si256(u[i], u[i + 4], 0x31);
    }
  }
};

}  // namespace
}  // namespace echovlm
