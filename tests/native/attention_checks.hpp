// CachedAttention and SelfAttention: against the formula in double precision, and rows or windows against themselves alone, bit for bit.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <utility>

#include "c_interface.hpp"
#include "checks.hpp"

namespace attention_checks {

constexpr double kTolerance = 5e-6;  // float32 sums: some 1e-6 of the output
constexpr double kBytesCost = 0.02;  // of the output's norm
constexpr std::int64_t kKeyBlock = 16;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

inline bool all_nan(const std::vector<float>& values) {
  return std::all_of(values.begin(), values.end(), [](float value) { return std::isnan(value); });
}

inline std::vector<float> part(const std::vector<float>& values, std::size_t width, std::size_t first, std::size_t last) {
  return {values.begin() + first * width, values.begin() + last * width};
}

inline std::vector<double> turned(const float* x, const float* cos, const float* sin, std::int64_t dim) {
  std::vector<double> y(dim);
  for (std::int64_t i = 0, half = dim / 2; i < half; ++i) {
    y[i] = static_cast<double>(x[i]) * cos[i] - static_cast<double>(x[i + half]) * sin[i];
    y[i + half] = static_cast<double>(x[i + half]) * cos[i] + static_cast<double>(x[i]) * sin[i];
  }
  return y;
}

// softmax(q k^T / sqrt(d)) v of one query, appended to `y`.
inline void attend(const std::vector<double>& q, const std::vector<std::vector<double>>& keys,
                   const std::vector<std::vector<double>>& values, std::vector<double>& y) {
  std::vector<double> weights;
  for (const auto& key : keys)
    weights.push_back(std::inner_product(q.begin(), q.end(), key.begin(), 0.0) / std::sqrt(static_cast<double>(q.size())));
  const double peak = *std::max_element(weights.begin(), weights.end());
  for (double& weight : weights) weight = std::exp(weight - peak);
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (std::size_t i = 0; i < q.size(); ++i) {
    double sum = 0;
    for (std::size_t p = 0; p < values.size(); ++p) sum += weights[p] * values[p][i];
    y.push_back(sum / total);
  }
}

// Rows of several sequences over caches that hold random values before them.
struct CachedRows {
  std::int64_t heads, kv_heads, dim, type, slot_count, capacity;
  std::vector<float> qkv, cos, sin, key_scales, value_scales;
  std::vector<std::int64_t> slots, positions;
  std::vector<std::uint8_t> keys, values;

  // A slot for each run: (positions already there, new rows).
  CachedRows(const std::vector<std::pair<std::int64_t, std::int64_t>>& runs, std::int64_t dim, std::int64_t type, unsigned seed)
      : heads(6), kv_heads(2), dim(dim), type(type), slot_count(static_cast<std::int64_t>(runs.size())), capacity(0) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> angle(-3.0f, 3.0f), scale(0.01f, 0.03f);
    for (std::int64_t slot = 0; slot < slot_count; ++slot) {
      const auto [filled, some] = runs[slot];
      capacity = std::max(capacity, (filled + some + kKeyBlock - 1) / kKeyBlock * kKeyBlock);
      for (std::int64_t i = 0; i < some; ++i) {
        slots.push_back(slot);
        positions.push_back(filled + i);
      }
    }
    for (std::size_t i = 0; i < slots.size() * (heads + 2 * kv_heads) * dim; ++i) qkv.push_back(normal(random));
    for (std::size_t i = 0; i < slots.size() * dim / 2; ++i) {
      const float turn = angle(random);
      cos.push_back(std::cos(turn));
      sin.push_back(std::sin(turn));
    }
    const std::size_t size = type == 0 ? 4 : type == 1 ? 2 : 1, count = slot_count * kv_heads * capacity * dim;
    for (auto* cache : {&keys, &values}) {
      cache->resize(count * size);
      for (std::size_t i = 0; i < count; ++i) {
        const float value = normal(random);
        const auto half = static_cast<std::uint16_t>((random() & 0x83ff) | 0x3800);  // 0.5 to 1, either sign
        const auto byte = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
        std::memcpy(cache->data() + i * size, type == 0 ? static_cast<const void*>(&value) : type == 1 ? static_cast<const void*>(&half) : &byte, size);
      }
    }
    for (std::int64_t i = 0; type == 2 && i < kv_heads * dim; ++i) {
      key_scales.push_back(scale(random));
      value_scales.push_back(scale(random));
    }
  }

  std::size_t rows() const { return slots.size(); }

  // The output of rows `first` to `last`; writes their keys and values.
  std::vector<float> run(std::size_t first, std::size_t last, std::int64_t threads) {
    std::vector<float> y((last - first) * heads * dim);
    const auto scales = [](const std::vector<float>& all) { return all.empty() ? nullptr : all.data(); };
    const EchovlmCachedAttention call{static_cast<std::int64_t>(last - first), heads, kv_heads, dim, type, slot_count, capacity, threads,
                                      qkv.data() + first * (heads + 2 * kv_heads) * dim, cos.data() + first * dim / 2,
                                      sin.data() + first * dim / 2, slots.data() + first, positions.data() + first, keys.data(),
                                      values.data(), scales(key_scales), scales(value_scales), y.data()};
    char error[256] = "";
    if (echovlm_cached_attention(&call, error, sizeof error)) std::fprintf(stderr, "refused: %s\n", error);
    return y;
  }

  // The formula over float32 caches into which `run` has written.
  std::vector<double> expected() const {
    std::vector<double> y;
    const auto *k = reinterpret_cast<const float*>(keys.data()), *v = reinterpret_cast<const float*>(values.data());
    for (std::size_t row = 0; row < rows(); ++row)
      for (std::int64_t head = 0; head < heads; ++head) {
        const std::int64_t cache = (slots[row] * kv_heads + head / (heads / kv_heads)) * capacity * dim;
        std::vector<std::vector<double>> row_keys, row_values;
        for (std::int64_t p = 0; p <= positions[row]; ++p) {
          row_keys.emplace_back();
          for (std::int64_t i = 0; i < dim; ++i) row_keys.back().push_back(k[cache + p / kKeyBlock * kKeyBlock * dim + i * kKeyBlock + p % kKeyBlock]);
          row_values.emplace_back(v + cache + p * dim, v + cache + (p + 1) * dim);
        }
        const float* q = qkv.data() + (row * (heads + 2 * kv_heads) + head) * dim;
        attend(turned(q, cos.data() + row * dim / 2, sin.data() + row * dim / 2, dim), row_keys, row_values, y);
      }
    return y;
  }
};

inline void check_cached(Checks& checks) {
  for (const std::int64_t type : {0, 1, 2})
    for (const std::int64_t dim : {16, 20, 34}) {
      const CachedRows fresh({{0, 1}, {70, 13}, {1030, 2}, {63, 5}}, dim, type, static_cast<unsigned>(dim + type));
      const std::string what = "CachedAttention, type " + std::to_string(type) + ", head of " + std::to_string(dim);
      CachedRows together = fresh, alone = fresh;
      const std::vector<float> y = together.run(0, fresh.rows(), 2);
      std::vector<float> of_each;
      for (std::size_t row = 0; row < fresh.rows(); ++row) {
        const std::vector<float> one = alone.run(row, row + 1, 1);
        of_each.insert(of_each.end(), one.begin(), one.end());
      }
      checks.expect(same_bits(y, of_each) && together.keys == alone.keys && together.values == alone.values, what + ": rows alone");
      if (type == 0) checks.expect(relative_error(y, together.expected()) < kTolerance, what + ": the formula");
      if (type == 2) continue;  // an integer cannot be NaN
      CachedRows spoiled = fresh;
      const std::size_t width = fresh.heads * dim, at = 4, end = 14;  // a row of the second sequence, and where that ends
      std::fill_n(spoiled.qkv.begin() + at * (fresh.heads + 2 * fresh.kv_heads) * dim, (fresh.heads + 2 * fresh.kv_heads) * dim, kNan);
      const std::vector<float> other = spoiled.run(0, fresh.rows(), 2);
      checks.expect(all_nan(part(other, width, at, end)), what + ": NaN in its own row and those that see it");
      checks.expect(same_bits(part(other, width, 0, at), part(y, width, 0, at)) &&
                        same_bits(part(other, width, end, fresh.rows()), part(y, width, end, fresh.rows())),
                    what + ": NaN in no other row");
    }
}

// Patches of several windows.
struct Patches {
  std::int64_t heads, dim;
  std::vector<std::int64_t> offsets;
  std::vector<float> qkv, cos, sin;

  Patches(std::vector<std::int64_t> windows, std::int64_t dim, unsigned seed) : heads(2), dim(dim), offsets(std::move(windows)) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> angle(-3.0f, 3.0f);
    for (std::int64_t i = 0; i < offsets.back() * 3 * heads * dim; ++i) qkv.push_back(normal(random));
    for (std::int64_t i = 0; i < offsets.back() * dim / 2; ++i) {
      const float turn = angle(random);
      cos.push_back(std::cos(turn));
      sin.push_back(std::sin(turn));
    }
  }

  // The output of windows `first` to `last`.
  std::vector<float> run(std::size_t first, std::size_t last, std::int64_t bits, std::int64_t threads) const {
    const std::int64_t row = offsets[first], rows = offsets[last] - row;
    std::vector<std::int64_t> bounds(offsets.begin() + first, offsets.begin() + last + 1);
    for (std::int64_t& bound : bounds) bound -= row;
    std::vector<float> y(rows * heads * dim);
    const EchovlmSelfAttention call{rows, heads, dim, bits, static_cast<std::int64_t>(last - first), threads, qkv.data() + row * 3 * heads * dim,
                                    cos.data() + row * dim / 2, sin.data() + row * dim / 2, bounds.data(), y.data()};
    char error[256] = "";
    if (echovlm_self_attention(&call, error, sizeof error)) std::fprintf(stderr, "refused: %s\n", error);
    return y;
  }

  std::vector<double> expected() const {
    std::vector<double> y;
    const auto head_of = [&](std::int64_t row, std::int64_t head) { return qkv.data() + (row * 3 * heads + head) * dim; };
    const auto turn = [&](std::int64_t row, std::int64_t head) {
      return turned(head_of(row, head), cos.data() + row * dim / 2, sin.data() + row * dim / 2, dim);
    };
    for (std::size_t window = 0; window + 1 < offsets.size(); ++window)
      for (std::int64_t row = offsets[window]; row < offsets[window + 1]; ++row)
        for (std::int64_t head = 0; head < heads; ++head) {
          std::vector<std::vector<double>> keys, values;
          for (std::int64_t p = offsets[window]; p < offsets[window + 1]; ++p) {
            keys.push_back(turn(p, heads + head));
            values.emplace_back(head_of(p, 2 * heads + head), head_of(p, 2 * heads + head) + dim);
          }
          attend(turn(row, head), keys, values, y);
        }
    return y;
  }
};

inline void check_self(Checks& checks) {
  for (const std::int64_t bits : {0, 8})
    for (const std::int64_t dim : {16, 20, 80}) {
      const Patches made({0, 64, 90, 91, 161}, dim, static_cast<unsigned>(dim));
      const std::string what = "SelfAttention, " + std::to_string(bits) + " bits, head of " + std::to_string(dim);
      const std::size_t windows = made.offsets.size() - 1, width = made.heads * dim;
      const std::vector<float> y = made.run(0, windows, bits, 2);
      checks.expect(relative_error(y, made.expected()) < (bits ? kBytesCost : kTolerance), what + ": the formula");
      bool same = true;
      for (std::size_t window = 0; window < windows; ++window)
        same &= same_bits(part(y, width, made.offsets[window], made.offsets[window + 1]), made.run(window, window + 1, bits, 1));
      checks.expect(same, what + ": windows alone");
      Patches spoiled = made;
      std::fill_n(spoiled.qkv.begin() + 70 * 3 * width, 3 * width, kNan);
      const std::vector<float> other = spoiled.run(0, windows, bits, 2);
      checks.expect(all_nan(part(other, width, 64, 90)), what + ": NaN in its window");
      checks.expect(same_bits(part(other, width, 0, 64), part(y, width, 0, 64)) && same_bits(part(other, width, 90, 161), part(y, width, 90, 161)),
                    what + ": NaN in no other window");
    }
}

}  // namespace attention_checks
