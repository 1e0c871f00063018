// AVX-512 with VNNI: vpdpbusd multiplies 64 unsigned weights by signed activations and adds groups of four to 16 int32 lanes.
#include <immintrin.h>

#include "../../../../attention/cpu/byte_attention.hpp"
#include "dispatch.hpp"
#include "kernel_table.hpp"

namespace echovlm {
namespace {

struct Avx512Vnni : WholeDots<Avx512Vnni> {
  using Bytes = __m512i;
  using Int = __m512i;
  using Float = __m512;
  static constexpr int lanes = 16;
  // Registers: 6 tokens x 2 vectors of sums and as many of totals, 2 of weights, 1 of activations: 27 of 32.
  static constexpr int panel_vectors = 2;
  static constexpr int tile_tokens = 6;
  static constexpr int attention_rows = 12;  // x 2 vectors of sums, 2 of keys or values and a query: 27 of 32 registers
  // Attention in bytes, 4 rows: 20 sums, 5 of values and a weight: 26 of 32 registers.
  static constexpr int byte_key_vectors = 4, byte_value_vectors = 5;
  template <int Bits>
  static constexpr std::size_t few_tokens = 16;
  static constexpr bool interleaves_rows = true;
  static constexpr int most_blocks_of_row = 4;  // in a vector of it, for one token: with more, interleaved rows take less time
  static constexpr std::size_t prefetch_bytes = 4096;
  static constexpr int prefetch_level = 3;
  static constexpr int zero4 = 8, zero8 = 128;  // zero points: stored weight minus its value

  static Bytes load(const void* p) { return _mm512_loadu_si512(p); }
  static Bytes load_some(const void* p, std::size_t bytes) {
    return _mm512_maskz_loadu_epi8(bytes >= 64 ? ~0ull : (1ull << bytes) - 1, p);
  }
  static void store(void* p, Bytes v) { _mm512_storeu_si512(p, v); }
  static Bytes set_bytes(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
  static Bytes low(Bytes v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
  static Bytes high(Bytes v) { return low(_mm512_srli_epi16(v, 4)); }
  static Bytes stored8(Bytes v) { return _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(128))); }
  static Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
  static Bytes broadcast_word(const std::int8_t* p) {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  static void load_even_odd(const std::int8_t* p, std::size_t bytes, Bytes& even, Bytes& odd) {
    const Bytes a = load_some(p, bytes), b = load_some(p + 64, bytes > 64 ? bytes - 64 : 0);
    const Bytes evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_epi32(a, evens, b);
    odd = _mm512_permutex2var_epi32(a, _mm512_or_si512(evens, _mm512_set1_epi32(1)), b);
  }

  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int set_int(std::int32_t value) { return _mm512_set1_epi32(value); }
  template <int Bits>
  static Int dot(Int sum, Bytes weight, Bytes x) {
    // Not _mm512_dpbusd_epi32: GCC 12 copies every sum before and after it to change its type, which takes twice the registers and
    // would spill the tile's sums to memory.
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weight), "v"(x));
    return sum;
  }

  static Int magnitude(Float v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }
  static Int larger(Int a, Int b) { return _mm512_max_epi32(a, b); }
  static std::int32_t largest(Int v) { return _mm512_reduce_max_epi32(v); }
  static Int negative(Int v) { return _mm512_sub_epi32(_mm512_setzero_si512(), v); }
  static void store_ints(std::int32_t* p, Int v) { _mm512_storeu_si512(p, v); }
  // 255 * 2^(-x / fall_unit) within 2e-3 of 255 times it, as bytes, of four vectors of x from 0. In 16 bits: n the nearest whole number, the
  // rest r from -1/2 to 1/2 in 1/65,536, and 2^-r by the polynomial of degree 2 with the least relative error, times 255 * 128.
  // Packing saturates, and works within quarters of a register:
  //   | a0-3 b0-3 c0-3 d0-3 | a4-7 b4-7 c4-7 d4-7 | a8-11 ... | a12-15 b12-15 c12-15 d12-15 |
  static constexpr float fall_unit = 2048;
  static Bytes byte_weights(const Float (&x)[4]) {
    const auto power = [](Int x) ECHOVLM_LAMBDA {
      const Int n = _mm512_mulhrs_epi16(x, _mm512_set1_epi16(16)), r = _mm512_slli_epi16(x, 5);
      Int p = _mm512_add_epi16(_mm512_mulhrs_epi16(r, _mm512_set1_epi16(1946)), _mm512_set1_epi16(-11480));
      p = _mm512_add_epi16(_mm512_mulhrs_epi16(r, p), _mm512_set1_epi16(32654));
      return _mm512_avg_epu16(_mm512_srli_epi16(_mm512_srlv_epi16(p, n), 6), _mm512_setzero_si512());
    };
    const Int low = power(_mm512_packs_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1])));
    return _mm512_packus_epi16(low, power(_mm512_packs_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]))));
  }
  // Where that puts the four bytes 4q .. 4q + 3 of the four vectors one after the other.
  static constexpr std::size_t place_of_quad(std::size_t q) { return q % 4 * 4 + q / 4; }
  // Four vectors rounded to signed bytes: of each lane one word, the first vector's byte lowest.
  static Int quads(const Float (&v)[4]) {
    const __m512i low = _mm512_set1_epi32(255);
    const __m512i a = _mm512_and_si512(_mm512_cvtps_epi32(v[0]), low), b = _mm512_and_si512(_mm512_cvtps_epi32(v[1]), low);
    const __m512i c = _mm512_and_si512(_mm512_cvtps_epi32(v[2]), low), d = _mm512_cvtps_epi32(v[3]);
    return _mm512_or_si512(_mm512_or_si512(a, _mm512_slli_epi32(b, 8)), _mm512_or_si512(_mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24)));
  }
  static Int load_ints(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  // Lanes rounded to integers, each one byte.
  static void store_bytes(std::uint8_t* p, Float v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
  static Float broadcast(float v) { return _mm512_set1_ps(v); }
  static Float multiply(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float add_floats(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float subtract(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float larger(Float a, Float b) { return _mm512_max_ps(a, b); }  // b where either is NaN
  static Float smaller(Float a, Float b) { return _mm512_min_ps(a, b); }  // likewise
  static float largest(Float v) { return _mm512_reduce_max_ps(v); }
  static void largest_of_four(const Float (&v)[4], float* largest) {
    const Float a = _mm512_max_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    const Float b = _mm512_max_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    const Float c = _mm512_max_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));  // of each quarter: one of each
    const __m256 d = _mm256_max_ps(_mm512_castps512_ps256(c), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(c), 1)));
    _mm_storeu_ps(largest, _mm_max_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1)));
  }
  static Float round(Float v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float times_power_of_two(Float v, Float n) { return _mm512_scalef_ps(v, n); }
  static Float load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_some_floats(const float* p, std::size_t count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (count < 16 ? count : 16)) - 1), p);
  }
  static Float load_some_halves(const std::uint16_t* p, std::size_t count) {
    const __mmask16 some = static_cast<__mmask16>((1u << (count < 16 ? count : 16)) - 1);
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(some, p));
  }
  static void store_floats(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static float sum(Float v) { return _mm512_reduce_add_ps(v); }

  // Transposes an 8 x 8 matrix of 8-byte pieces: piece q of rows[r] becomes piece r of rows[q].
  //
  //   rows[0]: | r0 p0 | r0 p1 | ... | r0 p7 |          rows[0]: | r0 p0 | r1 p0 | ... | r7 p0 |
  //   rows[1]: | r1 p0 | r1 p1 | ... | r1 p7 |    ->    rows[1]: | r0 p1 | r1 p1 | ... | r7 p1 |
  //   ...
  static void interleave(Bytes (&rows)[8]) {
    Bytes pairs[2][4];  // even pieces of two rows alternating, and odd pieces
    each<4>([&](auto i) ECHOVLM_LAMBDA {
      pairs[0][i.value] = _mm512_unpacklo_epi64(rows[2 * i.value], rows[2 * i.value + 1]);
      pairs[1][i.value] = _mm512_unpackhi_epi64(rows[2 * i.value], rows[2 * i.value + 1]);
    });
    each<2>([&](auto odd) ECHOVLM_LAMBDA {
      const auto& p = pairs[odd.value];
      const Bytes a = _mm512_shuffle_i32x4(p[0], p[1], 0x88), b = _mm512_shuffle_i32x4(p[0], p[1], 0xdd);
      const Bytes c = _mm512_shuffle_i32x4(p[2], p[3], 0x88), d = _mm512_shuffle_i32x4(p[2], p[3], 0xdd);
      rows[odd.value] = _mm512_shuffle_i32x4(a, c, 0x88);
      rows[odd.value + 2] = _mm512_shuffle_i32x4(b, d, 0x88);
      rows[odd.value + 4] = _mm512_shuffle_i32x4(a, c, 0xdd);
      rows[odd.value + 6] = _mm512_shuffle_i32x4(b, d, 0xdd);
    });
  }
  static Bytes broadcast_piece(const void* p) {
    std::int64_t piece;
    std::memcpy(&piece, p, 8);
    return _mm512_set1_epi64(piece);
  }
  static Bytes as_bytes(Float v) { return _mm512_castps_si512(v); }
  static Float as_floats(Bytes v) { return _mm512_castsi512_ps(v); }
  // Adds adjacent lanes and merges both vectors; for each four lanes:
  //
  //   a: | a0 | a1 | a2 | a3 |   b: | b0 | b1 | b2 | b3 |   ->   | a0+a1 | a2+a3 | b0+b1 | b2+b3 |
  static Int add_pairs(Int a, Int b) {
    const Float x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
  }

  // Sixteen rows' lanes, two rows' sums of pairs in a vector: their sums, by row, or those of each block in them.
  template <int Blocks>
  static void add_lanes(const Int (&pairs)[8], Int (&sums)[Blocks]) {
    static_assert(Blocks <= most_blocks_of_row);
    Int fours[4];  // of each quarter of a register: the sums of four rows
    each<4>([&](auto i) ECHOVLM_LAMBDA { fours[i.value] = add_pairs(pairs[2 * i.value], pairs[2 * i.value + 1]); });
    const auto even_quarters = [](Int a, Int b) ECHOVLM_LAMBDA { return _mm512_shuffle_i32x4(a, b, 0x88); };
    const auto odd_quarters = [](Int a, Int b) ECHOVLM_LAMBDA { return _mm512_shuffle_i32x4(a, b, 0xdd); };
    if constexpr (Blocks <= 2) {
      const auto add_quarters = [&](Int a, Int b) ECHOVLM_LAMBDA { return _mm512_add_epi32(even_quarters(a, b), odd_quarters(a, b)); };
      const Int a = add_quarters(fours[0], fours[1]), b = add_quarters(fours[2], fours[3]);
      if constexpr (Blocks == 1) {
        sums[0] = add_quarters(a, b);
      } else {
        sums[0] = even_quarters(a, b);
        sums[1] = odd_quarters(a, b);
      }
    } else {
      const Int a = even_quarters(fours[0], fours[1]), b = even_quarters(fours[2], fours[3]);
      const Int c = odd_quarters(fours[0], fours[1]), d = odd_quarters(fours[2], fours[3]);
      sums[0] = even_quarters(a, b);
      sums[1] = even_quarters(c, d);
      sums[2] = odd_quarters(a, b);
      sums[3] = odd_quarters(c, d);
    }
  }

  // Transposes a 16 x 16 matrix of 32-bit words: words[row] lane w becomes words[w] lane row. As in avx2.hpp, rows are
  // interleaved by 32-bit, then by 64-bit words within each 128-bit quarter; last, the quarters of the registers are exchanged.
  static void transpose(Bytes (&words)[16]) {
    Bytes t[16], u[16];
    each<8>([&](auto pair) ECHOVLM_LAMBDA {
      constexpr int i = 2 * pair.value;
      t[i] = _mm512_unpacklo_epi32(words[i], words[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(words[i], words[i + 1]);
    });
    each<4>([&](auto four) ECHOVLM_LAMBDA {
      constexpr int i = 4 * four.value;
      u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    });
    each<4>([&](auto quarter) ECHOVLM_LAMBDA {
      constexpr int i = quarter.value;
      const Bytes a = _mm512_shuffle_i32x4(u[i], u[i + 4], 0x88), b = _mm512_shuffle_i32x4(u[i], u[i + 4], 0xdd);
      const Bytes c = _mm512_shuffle_i32x4(u[i + 8], u[i + 12], 0x88), d = _mm512_shuffle_i32x4(u[i + 8], u[i + 12], 0xdd);
      words[i] = _mm512_shuffle_i32x4(a, c, 0x88);
      words[i + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
      words[i + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
      words[i + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    });
  }
};

}  // namespace

const Kernels kAvx512VnniKernels = table<Avx512Vnni>("avx512_vnni", ByteAttentionTiles<Avx512Vnni>::kTable);

}  // namespace echovlm
