// Plain C++ with four lanes: runs on any processor, and lets sanitizers check every access.
#include "dispatch.hpp"
#include "kernel_table.hpp"

namespace echovlm {
namespace {

struct Portable : WholeDots<Portable> {
  struct Bytes {
    std::uint8_t at[16];
  };
  struct Int {
    std::int32_t at[4];
  };
  struct Float {
    float at[4];
  };
  static constexpr int lanes = 4;
  static constexpr int panel_vectors = 2;
  static constexpr int tile_tokens = 4;
  static constexpr int attention_rows = 4;
  template <int Bits>
  static constexpr std::size_t few_tokens = 3;
  static constexpr bool interleaves_rows = false;
  static constexpr std::size_t prefetch_bytes = 512;
  static constexpr int prefetch_level = 0;
  static constexpr int zero4 = 8, zero8 = 0;

  static Bytes load(const void* p) { return load_some(p, 16); }
  static Bytes load_some(const void* p, std::size_t bytes) {
    Bytes v = {};
    std::memcpy(v.at, p, bytes < 16 ? bytes : 16);
    return v;
  }
  static void store(void* p, const Bytes& v) { std::memcpy(p, v.at, 16); }
  static Bytes set_bytes(int value) {
    Bytes v;
    std::memset(v.at, value, 16);
    return v;
  }
  static Bytes low(Bytes v) {
    for (auto& byte : v.at) byte &= 15;
    return v;
  }
  static Bytes high(Bytes v) {
    for (auto& byte : v.at) byte >>= 4;
    return v;
  }
  static Bytes stored8(const Bytes& v) { return v; }
  static Bytes either(Bytes a, const Bytes& b) {
    for (int i = 0; i < 16; ++i) a.at[i] |= b.at[i];
    return a;
  }
  static Bytes broadcast_word(const std::int8_t* p) {
    Bytes v;
    for (int i = 0; i < 4; ++i) std::memcpy(v.at + 4 * i, p, 4);
    return v;
  }
  static void load_even_odd(const std::int8_t* p, std::size_t bytes, Bytes& even, Bytes& odd) {
    std::uint8_t whole[32] = {};
    std::memcpy(whole, p, bytes < 32 ? bytes : 32);
    for (int i = 0; i < 4; ++i) {
      std::memcpy(even.at + 4 * i, whole + 8 * i, 4);
      std::memcpy(odd.at + 4 * i, whole + 8 * i + 4, 4);
    }
  }

  static Int add(Int a, const Int& b) {
    for (int i = 0; i < 4; ++i) a.at[i] += b.at[i];
    return a;
  }
  // The sums of a's two pairs of lanes, then of b's.
  static Int add_pairs(const Int& a, const Int& b) {
    return {{a.at[0] + a.at[1], a.at[2] + a.at[3], b.at[0] + b.at[1], b.at[2] + b.at[3]}};
  }
  // Four rows' lanes, two rows' sums of pairs in a vector: their sums, by row, or those of each block in them.
  static void add_lanes(const Int (&pairs)[2], Int (&sums)[1]) { sums[0] = add_pairs(pairs[0], pairs[1]); }
  static void add_lanes(const Int (&pairs)[2], Int (&sums)[2]) {
    for (int i = 0; i < 2; ++i)
      sums[i] = {{pairs[0].at[i], pairs[0].at[i + 2], pairs[1].at[i], pairs[1].at[i + 2]}};
  }
  static Bytes as_bytes(const Float& v) {
    Bytes bytes;
    std::memcpy(bytes.at, v.at, 16);
    return bytes;
  }
  static Float as_floats(const Bytes& v) {
    Float floats;
    std::memcpy(floats.at, v.at, 16);
    return floats;
  }
  static Int set_int(std::int32_t value) { return {{value, value, value, value}}; }
  template <int Bits>
  static Int dot(Int sum, const Bytes& weight, const Bytes& x) {
    for (int i = 0; i < 16; ++i)
      sum.at[i / 4] += static_cast<std::int8_t>(weight.at[i]) * static_cast<std::int8_t>(x.at[i]);
    return sum;
  }

  static Float to_float(const Int& v) {
    Float f;
    for (int i = 0; i < 4; ++i) f.at[i] = static_cast<float>(v.at[i]);
    return f;
  }
  static Float broadcast(float v) { return {{v, v, v, v}}; }
  static Float multiply(Float a, const Float& b) {
    for (int i = 0; i < 4; ++i) a.at[i] *= b.at[i];
    return a;
  }
  static Float multiply_add(const Float& a, const Float& b, Float c) {
    for (int i = 0; i < 4; ++i) c.at[i] += a.at[i] * b.at[i];
    return c;
  }
  static Float add_floats(Float a, const Float& b) {
    for (int i = 0; i < 4; ++i) a.at[i] += b.at[i];
    return a;
  }
  static Float subtract(Float a, const Float& b) {
    for (int i = 0; i < 4; ++i) a.at[i] -= b.at[i];
    return a;
  }
  static Float larger(const Float& a, Float b) {  // b where either is NaN
    for (int i = 0; i < 4; ++i) b.at[i] = a.at[i] > b.at[i] ? a.at[i] : b.at[i];
    return b;
  }
  static Float smaller(const Float& a, Float b) {  // likewise
    for (int i = 0; i < 4; ++i) b.at[i] = a.at[i] < b.at[i] ? a.at[i] : b.at[i];
    return b;
  }
  static float largest(const Float& v) {
    const Float pairs = larger(v, {{v.at[2], v.at[3], v.at[0], v.at[1]}});
    return pairs.at[0] > pairs.at[1] ? pairs.at[0] : pairs.at[1];
  }
  static Float round(Float v) {
    for (float& value : v.at) value = (value + kRounder) - kRounder;
    return v;
  }
  // n an integer, v times 2^n a normal number.
  static Float times_power_of_two(Float v, const Float& n) {
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t exponent = bits_of_float(n.at[i] + kRounder) - bits_of_float(kRounder);
      v.at[i] = float_of_bits(bits_of_float(v.at[i]) + (exponent << 23));
    }
    return v;
  }
  static Float load_floats(const float* p) { return load_some_floats(p, 4); }
  static Float load_some_floats(const float* p, std::size_t count) {
    Float v = {};
    std::memcpy(v.at, p, (count < 4 ? count : 4) * sizeof(float));
    return v;
  }
  static Float load_some_halves(const std::uint16_t* p, std::size_t count) {
    Float v = {};
    widen_half(p, count < 4 ? count : 4, v.at);
    return v;
  }
  static void store_floats(float* p, const Float& v) { std::memcpy(p, v.at, sizeof v.at); }
  static float sum(const Float& v) { return (v.at[0] + v.at[2]) + (v.at[1] + v.at[3]); }
  static void transpose(Bytes (&words)[4]) {
    Bytes t[4];
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) std::memcpy(t[j].at + 4 * i, words[i].at + 4 * j, 4);
    for (int i = 0; i < 4; ++i) words[i] = t[i];
  }
};

}  // namespace

const Kernels kPortableKernels = table<Portable>("portable");

}  // namespace echovlm
