// ARMv8.6 with int8 matrix products: smmla multiplies two rows by two tokens over eight values of K, twice the work of sdot.
//
//   panel, eight values of K:  | row 0: k .. k+7 | row 1: k .. k+7 |  x 4 pairs of rows
//   activations:               | token 0: k .. k+7 | token 1: k .. k+7 |
//   int32 sums:                | row 0 token 0 | row 0 token 1 | row 1 token 0 | row 1 token 1 |
#include "dispatch.hpp"
#include "neon.hpp"

namespace echovlm {
namespace {

struct MatrixPanel {
  static constexpr std::size_t kPairs = 4;
  static constexpr std::size_t kRows = 2 * kPairs;
  template <int Bits>
  static constexpr std::size_t kWeightBytes = 1;
  static constexpr std::size_t kTokens = 8;

  template <int Bits>
  static void unpack(const BlockWeights& w, std::size_t row0, std::size_t k0, std::size_t k, std::uint8_t* panel) {
    const std::size_t bytes = k * Bits / 8;
    for (std::size_t pair = 0; pair < kPairs; ++pair) {
      for (std::size_t at = 0; at < bytes; at += 16) {
        const std::size_t valid = bytes - at < 16 ? bytes - at : 16;
        int64x2_t eights[2][4];  // each row's groups of eight values, in order
        for (std::size_t r = 0; r < 2; ++r) {
          const std::size_t row = row0 + 2 * pair + r;
          const std::uint8_t* p = w.values + row * w.row_bytes + k0 * Bits / 8 + at;
          const int8x16_t packed = row < w.rows ? Neon::load_some(p, valid) : vdupq_n_s8(0);
          if constexpr (Bits == 4) {
            const int32x4_t low = vreinterpretq_s32_s8(Neon::low(packed)), high = vreinterpretq_s32_s8(Neon::high(packed));
            const int64x2_t first = vreinterpretq_s64_s32(vzip1q_s32(low, high));
            const int64x2_t second = vreinterpretq_s64_s32(vzip2q_s32(low, high));
            eights[r][0] = vdupq_laneq_s64(first, 0);
            eights[r][1] = vdupq_laneq_s64(first, 1);
            eights[r][2] = vdupq_laneq_s64(second, 0);
            eights[r][3] = vdupq_laneq_s64(second, 1);
          } else {
            eights[r][0] = vdupq_laneq_s64(vreinterpretq_s64_s8(packed), 0);
            eights[r][1] = vdupq_laneq_s64(vreinterpretq_s64_s8(packed), 1);
          }
        }
        const std::size_t first = at * 8 / Bits / 8, count = valid / Bits;
        for (std::size_t i = 0; i < count; ++i)
          vst1q_s64(reinterpret_cast<std::int64_t*>(panel + ((first + i) * kPairs + pair) * 16),
                    vzip1q_s64(eights[0][i], eights[1][i]));
      }
    }
  }

  // Multiplies P pairs of tokens; if their number is odd, the last token is used twice.
  template <int Bits, int P>
  static void tile(const std::uint8_t* panel, const float* scales, std::size_t values, const QuantizedTokens& x,
                   std::size_t k, std::size_t block, const std::uint32_t* tokens, std::size_t count, float* const* out) {
    constexpr int zero = Bits == 4 ? Neon::zero4 : Neon::zero8;
    std::size_t place[2 * P];
    for (std::size_t m = 0; m < 2 * P; ++m) place[m] = tokens[m < count ? m : count - 1];
    int32x4_t sums[P][kPairs];
    each<P>([&](auto p) ECHOVLM_LAMBDA {
      const int32x2_t begin = {-zero * x.sums[place[2 * p.value] * x.scale_stride + block],
                               -zero * x.sums[place[2 * p.value + 1] * x.scale_stride + block]};
      each<kPairs>([&](auto r) ECHOVLM_LAMBDA { sums[p.value][r.value] = vcombine_s32(begin, begin); });
    });
    for (std::size_t at = 0; at < values; at += 8) {
      int8x16_t weight[kPairs];
      each<kPairs>([&](auto r) ECHOVLM_LAMBDA { weight[r.value] = Neon::load(panel + (at / 8 * kPairs + r.value) * 16); });
      each<P>([&](auto p) ECHOVLM_LAMBDA {
        const int8x16_t pair = vcombine_s8(vld1_s8(x.values + place[2 * p.value] * x.stride + k + at),
                                           vld1_s8(x.values + place[2 * p.value + 1] * x.stride + k + at));
        each<kPairs>([&](auto r) ECHOVLM_LAMBDA {
          sums[p.value][r.value] = vmmlaq_s32(sums[p.value][r.value], weight[r.value], pair);
        });
      });
    }
    each<2 * P>([&](auto m) ECHOVLM_LAMBDA {
      if (static_cast<std::size_t>(m.value) >= count) return;
      const float32x4_t x_scale = vdupq_n_f32(x.scales[place[m.value] * x.scale_stride + block]);
      each<kPairs / 2>([&](auto half) ECHOVLM_LAMBDA {
        constexpr int r = 2 * half.value;
        const int32x4_t a = sums[m.value / 2][r], b = sums[m.value / 2][r + 1];
        const float32x4_t sum = vcvtq_f32_s32(m.value % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b));
        float* at = out[m.value] + 2 * r;
        vst1q_f32(at, vfmaq_f32(vld1q_f32(at), vmulq_f32(sum, vld1q_f32(scales + 2 * r)), x_scale));
      });
    });
  }

  template <int Bits>
  static void multiply(const PanelChunk& chunk, const QuantizedTokens& x, const TokenList& list, const Accumulator& c, Prefetch&) {
    for (std::size_t i = 0; i < list.count; i += kTokens) {
      const std::size_t count = list.count - i < kTokens ? list.count - i : kTokens;
      float* out[kTokens];
      for (std::size_t m = 0; m < count; ++m) out[m] = c.values + accumulator_row(list, i + m) * c.stride + chunk.row0;
      const std::uint32_t* tokens = list.tokens + i;
      for (std::size_t b = 0; b < chunk.blocks; ++b) {
        const std::uint8_t* values = chunk.panel + b * chunk.block * kRows;
        const float* scales = chunk.scales + b * kRows;
        const std::size_t k = chunk.k0 + b * chunk.block, block = chunk.block0 + b;
        switch ((count + 1) / 2) {
          case 1: tile<Bits, 1>(values, scales, chunk.block, x, k, block, tokens, count, out); break;
          case 2: tile<Bits, 2>(values, scales, chunk.block, x, k, block, tokens, count, out); break;
          case 3: tile<Bits, 3>(values, scales, chunk.block, x, k, block, tokens, count, out); break;
          default: tile<Bits, 4>(values, scales, chunk.block, x, k, block, tokens, count, out); break;
        }
      }
    }
  }
};

}  // namespace

const Kernels kNeonI8mmKernels = table<Neon, MatrixPanel>("neon_i8mm");

}  // namespace echovlm
