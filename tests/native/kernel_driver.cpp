// Runs the operators through their plain C functions and compares with the formula in double precision, for qemu and the
// sanitizers, which cannot run Python.
//
//   kernel_driver [KERNEL ...]     tests all kernels of this processor, or the named ones; exit code 1 if one is wrong
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "attention_checks.hpp"
#include "c_interface.hpp"
#include "checks.hpp"
#include "own_threads.hpp"

namespace {

// The formula rounds activations as the kernels do. What differs is the order of float sums, and inner values that this makes round
// to the other side.
constexpr double kTolerance = 4e-3;

struct Weight {
  std::vector<std::int8_t> packed;
  std::vector<float> scales;
  std::vector<double> values;
};

struct Shape {
  std::vector<std::int64_t> widths;
  std::int64_t top_k, bits, block, hidden, tokens;
  bool norm;
};

class Operator {
 public:
  Operator(const Shape& shape, unsigned seed) : shape_(shape), random_(seed) {
    total_ = std::accumulate(shape.widths.begin(), shape.widths.end(), std::int64_t{0});
    x_ = normal(shape.tokens * shape.hidden, 1);
    router_ = normal(experts() * shape.hidden, shape.hidden);
    shared_gate_ = normal(shape.hidden, shape.hidden);
    coefficient_ = normal(2 * shape.hidden, shape.hidden);
    bias_ = normal(2, 1);
    gate_ = weight(total_, shape.hidden);
    up_ = weight(total_, shape.hidden);
    down_ = weight(shape.hidden, total_);
  }

  std::vector<float>& x() { return x_; }

  std::vector<float> run(std::int64_t threads) const { return run(threads, 0, shape_.tokens); }

  // Some of the tokens alone.
  std::vector<float> run(std::int64_t threads, std::int64_t first, std::int64_t count) const {
    std::vector<float> y(count * shape_.hidden);
    char error[256] = "";
    const auto matrix = [](const Weight& w) { return EchovlmMatrix{w.packed.data(), w.scales.data(), 0, 0}; };
    const EchovlmDualPathMoE call{shape_.widths.data(), static_cast<std::int64_t>(shape_.widths.size()), shape_.top_k,
                                  shape_.norm, shape_.bits, shape_.block, count, shape_.hidden, threads, x_.data() + first * shape_.hidden,
                                  router_.data(), shared_gate_.data(), coefficient_.data(), bias_.data(), matrix(gate_),
                                  matrix(up_), matrix(down_), y.data()};
    if (echovlm_dual_path_moe(&call, error, sizeof error)) std::fprintf(stderr, "refused: %s\n", error);
    return y;
  }

  // README.md's formula, one token at a time, activations rounded by block.
  std::vector<double> expected() const {
    std::vector<double> y;
    for (std::int64_t token = 0; token < shape_.tokens; ++token) {
      const std::vector<double> x(x_.begin() + token * shape_.hidden, x_.begin() + (token + 1) * shape_.hidden);
      const std::vector<double> weights = group_weights(x);
      const std::vector<double> entering = rounded(x);
      std::vector<double> sum(shape_.hidden, 0.0);
      std::int64_t offset = 0;
      for (std::size_t group = 0; group < weights.size(); ++group) {
        const std::int64_t width = shape_.widths[group];
        if (weights[group] != 0) {
          std::vector<double> inner(width);
          for (std::int64_t i = 0; i < width; ++i) {
            const double z = dot(gate_.values, offset + i, entering);
            inner[i] = z / (1 + std::exp(-z)) * dot(up_.values, offset + i, entering);
          }
          inner = rounded(inner);
          for (std::int64_t row = 0; row < shape_.hidden; ++row) {
            double part = 0;
            for (std::int64_t i = 0; i < width; ++i) part += down_.values[row * total_ + offset + i] * inner[i];
            sum[row] += weights[group] * part;
          }
        }
        offset += width;
      }
      y.insert(y.end(), sum.begin(), sum.end());
    }
    return y;
  }

 private:
  std::int64_t experts() const { return static_cast<std::int64_t>(shape_.widths.size()) - 2; }

  std::vector<float> normal(std::int64_t count, std::int64_t fan_in) {
    std::normal_distribution<float> distribution(0.0f, 1.0f / std::sqrt(static_cast<float>(fan_in)));
    std::vector<float> values(count);
    for (float& value : values) value = distribution(random_);
    return values;
  }

  Weight weight(std::int64_t rows, std::int64_t columns) {
    Weight made;
    std::uniform_int_distribution<int> q(shape_.bits == 4 ? -8 : -127, shape_.bits == 4 ? 7 : 127);
    std::uniform_real_distribution<float> scale(0.5f, 1.5f);
    for (std::int64_t i = 0; i < rows * columns / shape_.block; ++i)
      made.scales.push_back(scale(random_) / (std::sqrt(static_cast<float>(columns)) * (shape_.bits == 4 ? 4 : 64)));
    made.packed.assign(rows * columns * shape_.bits / 8, 0);
    for (std::int64_t i = 0; i < rows * columns; ++i) {
      const int value = q(random_);
      made.values.push_back(value * static_cast<double>(made.scales[i / shape_.block]));
      if (shape_.bits == 8)
        made.packed[i] = static_cast<std::int8_t>(value);
      else
        made.packed[i / 2] = static_cast<std::int8_t>(made.packed[i / 2] | (value + 8) << (i % 2 * 4));
    }
    return made;
  }

  template <class Matrix>
  double dot(const Matrix& matrix, std::int64_t row, const std::vector<double>& x) const {
    double sum = 0;
    for (std::size_t k = 0; k < x.size(); ++k) sum += matrix[row * x.size() + k] * x[k];
    return sum;
  }

  std::vector<double> rounded(std::vector<double> values) const {
    for (std::size_t first = 0; first < values.size(); first += shape_.block) {
      double peak = 0;
      for (std::int64_t i = 0; i < shape_.block; ++i) peak = std::max(peak, std::abs(values[first + i]));
      for (std::int64_t i = 0; i < shape_.block && peak > 0; ++i)
        values[first + i] = std::nearbyint(values[first + i] * 127 / peak) * peak / 127;
    }
    return values;
  }

  std::vector<double> group_weights(const std::vector<double>& x) const {
    const double a = dot(coefficient_, 0, x) + bias_[0], b = dot(coefficient_, 1, x) + bias_[1];
    const double moe = 1 / (1 + std::exp(b - a));
    std::vector<double> p;
    for (std::int64_t e = 0; e < experts(); ++e) p.push_back(std::exp(dot(router_, e, x)));
    const double all = std::accumulate(p.begin(), p.end(), 0.0);
    std::vector<std::int64_t> order(p.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto i, auto j) { return p[i] > p[j]; });
    double kept = 0;
    for (std::int64_t k = 0; k < shape_.top_k; ++k) kept += p[order[k]] / all;
    std::vector<double> weights{1 - moe, moe / (1 + std::exp(-dot(shared_gate_, 0, x)))};
    weights.resize(shape_.widths.size(), 0.0);
    for (std::int64_t k = 0; k < shape_.top_k; ++k)
      weights[2 + order[k]] = moe * p[order[k]] / all / (shape_.norm ? kept : 1);
    return weights;
  }

  Shape shape_;
  std::mt19937 random_;
  std::int64_t total_;
  std::vector<float> x_, router_, shared_gate_, coefficient_, bias_;
  Weight gate_, up_, down_;
};

void check_shapes(Checks& checks) {
  unsigned seed = 0;
  for (const std::int64_t bits : {4, 8})
    for (const std::int64_t block : {16, 32, 64, 128})
      for (const std::int64_t tokens : {1, 2, 3, 5, 8, 9, 21}) {
        const Shape shape{{3 * block, block, block, 2 * block, block}, 1 + seed % 3, bits, block, 3 * block, tokens, seed % 2 == 1};
        const Operator made(shape, ++seed);
        const double error = relative_error(made.run(1 + seed % 3), made.expected());
        char what[128];
        std::snprintf(what, sizeof what, "%d bits, block %d, %d tokens: error %g", static_cast<int>(bits),
                      static_cast<int>(block), static_cast<int>(tokens), error);
        checks.expect(error < kTolerance, what);
      }
}

// Rows that end with whole vectors and rows that do not.
void check_batches(Checks& checks) {
  unsigned seed = 100;
  for (const std::int64_t bits : {4, 8})
    for (const std::int64_t block : {16, 32, 64, 128})
      for (const std::int64_t blocks : {3, 8}) {
        const Shape shape{{3 * block, 2 * block, block, 2 * block, block}, 2, bits, block, blocks * block, 21, true};
        const Operator made(shape, ++seed);
        const std::vector<float> together = made.run(2);
        bool same = true;
        for (const std::int64_t count : {1, 2, 3, 4, 5, 7, 8, 9, 17})
          for (std::int64_t first = 0; first + count <= shape.tokens; first += count > 1 ? 4 : 1) {
            const std::vector<float> some = made.run(1, first, count);
            same &= std::memcmp(some.data(), together.data() + first * shape.hidden, some.size() * sizeof(float)) == 0;
          }
        checks.expect(same, std::to_string(bits) + " bits, block " + std::to_string(block) + ", width " + std::to_string(shape.hidden) +
                                ": a token has the bits that it has alone");
      }
}

void check_many_tokens(Checks& checks) {
  const Operator made({{128, 64, 64, 64}, 1, 4, 64, 64, 600, false}, 7);
  const std::vector<float> alone = made.run(1);
  checks.expect(relative_error(alone, made.expected()) < kTolerance, "600 tokens");
  checks.expect(made.run(3) == alone, "600 tokens on three threads are those on one");
}

void check_not_finite(Checks& checks) {
  Operator made({{128, 64, 64, 64}, 1, 8, 32, 64, 10, false}, 9);
  const std::vector<float> clean = made.run(1);
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    made.x()[64 * 4 + 11] = value;
    const std::vector<float> y = made.run(2);
    bool spoiled = true, same = true;
    for (std::size_t i = 0; i < y.size(); ++i) {
      if (i / 64 == 4)
        spoiled = spoiled && !std::isfinite(y[i]);
      else
        same = same && y[i] == clean[i];
    }
    checks.expect(spoiled && same, "a token that is not finite spoils only itself");
  }
}

void check_concurrent_calls(Checks& checks) {
  const Operator made({{256, 64, 64, 64}, 2, 4, 64, 128, 12, true}, 11);
  const std::vector<float> alone = made.run(1);
  std::vector<std::thread> callers;
  std::vector<int> same(4, 0);
  for (int& result : same)
    callers.emplace_back([&] {
      for (int turn = 0; turn < 5; ++turn) result += made.run(2) == alone;
    });
  for (std::thread& caller : callers) caller.join();
  checks.expect(same == std::vector<int>(4, 5), "calls at the same time do not disturb each other");
}

void check_linear(Checks& checks) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(5 * 96), bias(33), y(5 * 33), scales(33 * 3, 0.25f);
  for (float& value : x) value = normal(random);
  for (float& value : bias) value = normal(random);
  std::vector<std::int8_t> weight(33 * 96);
  for (std::int8_t& value : weight) value = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
  const EchovlmBlockQuantLinear call{8, 32, 5, 96, 33, 2, x.data(), bias.data(), {weight.data(), scales.data(), 0, 0}, y.data()};
  char error[256] = "";
  checks.expect(echovlm_block_quant_linear(&call, error, sizeof error) == 0, error);
  std::vector<double> expected;
  for (int token = 0; token < 5; ++token)
    for (int row = 0; row < 33; ++row) {
      double sum = bias[row];
      for (int k = 0; k < 96; ++k) sum += 0.25 * weight[row * 96 + k] * x[token * 96 + k];
      expected.push_back(sum);
    }
  checks.expect(relative_error(y, expected) < 0.02, "BlockQuantLinear, within what int8 activations cost");
}

void check_linear_batches(Checks& checks) {
  constexpr std::int64_t tokens = 19, rows = 77;
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const std::int64_t bits : {4, 8})
    for (const std::int64_t block : {16, 32, 64, 128})
      for (const std::int64_t columns : {5 * block, std::int64_t{2304}}) {
        std::vector<float> x(tokens * columns), bias(rows), scales(rows * columns / block);
        for (auto* values : {&x, &bias, &scales})
          for (float& value : *values) value = normal(random);
        std::vector<std::int8_t> weight(rows * columns * bits / 8);
        for (std::int8_t& value : weight) value = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
        const auto run = [&](std::int64_t first, std::int64_t count) {
          std::vector<float> y(count * rows);
          const EchovlmMatrix matrix{weight.data(), scales.data(), 0, 0};
          const EchovlmBlockQuantLinear call{bits, block, count, columns, rows, 2, x.data() + first * columns, bias.data(), matrix, y.data()};
          char error[256] = "";
          checks.expect(echovlm_block_quant_linear(&call, error, sizeof error) == 0, error);
          return y;
        };
        const std::vector<float> together = run(0, tokens);
        bool same = true;
        for (const std::int64_t count : {1, 2, 3, 4, 5, 6, 8, 9, 17}) {
          const std::vector<float> some = run(tokens - count, count);
          same &= std::memcmp(some.data(), together.data() + (tokens - count) * rows, some.size() * sizeof(float)) == 0;
        }
        checks.expect(same, "BlockQuantLinear, " + std::to_string(bits) + " bits, block " + std::to_string(block) + ", " +
                                std::to_string(columns) + " columns: a token has the bits that it has alone");
      }
}

// Both forms against the formula, alone as together with others, and with a token that is not finite.
void check_mlp(Checks& checks) {
  constexpr std::int64_t tokens = 19, width = 96, inner = 192;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  const auto values = [&](std::int64_t count) {
    std::vector<float> made(count);
    for (float& value : made) value = normal(random);
    return made;
  };
  std::vector<float> x = values(tokens * width);
  const std::vector<float> up_bias = values(inner), down_bias = values(width), gate_bias = values(inner);
  const std::vector<float> scales(inner * width / 32, 0.002f);
  std::vector<std::int8_t> weights[3];  // up, down, gate
  for (auto& weight : weights)
    for (std::int64_t i = 0; i < inner * width; ++i) weight.push_back(static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127));
  const auto row = [&](const std::vector<std::int8_t>& weight, std::int64_t index, const std::vector<double>& entering, double bias) {
    double sum = bias;
    for (std::size_t k = 0; k < entering.size(); ++k) sum += 0.002 * weight[index * entering.size() + k] * entering[k];
    return sum;
  };
  for (const bool gated : {false, true}) {
    const auto run = [&](std::int64_t first, std::int64_t count) {
      std::vector<float> y(count * width);
      const auto matrix = [&](int which) { return EchovlmMatrix{weights[which].data(), scales.data(), 0, 0}; };
      const EchovlmBlockQuantMLP call{8, 32, 64, count, width, inner, 2, x.data() + first * width, up_bias.data(), down_bias.data(),
                                      gate_bias.data(), matrix(0), matrix(1), gated ? matrix(2) : EchovlmMatrix{}, y.data()};
      char error[256] = "";
      checks.expect(echovlm_block_quant_mlp(&call, error, sizeof error) == 0, error);
      return y;
    };
    std::vector<double> expected;
    for (std::int64_t token = 0; token < tokens; ++token) {
      const std::vector<double> entering(x.begin() + token * width, x.begin() + (token + 1) * width);
      std::vector<double> between(inner);
      for (std::int64_t i = 0; i < inner; ++i) {
        const double up = row(weights[0], i, entering, up_bias[i]), gate = row(weights[2], i, entering, gate_bias[i]);
        between[i] = gated ? gate / (1 + std::exp(-gate)) * up : up / (1 + std::exp(-1.702 * up));
      }
      for (std::int64_t i = 0; i < width; ++i) expected.push_back(row(weights[1], i, between, down_bias[i]));
    }
    const std::string name = gated ? "BlockQuantMLP with a gate" : "BlockQuantMLP";
    const std::vector<float> together = run(0, tokens);
    checks.expect(relative_error(together, expected) < 0.02, name + ", within what int8 activations cost");
    bool same = true;
    for (const std::int64_t count : {1, 2, 7, 17}) {
      const std::vector<float> some = run(tokens - count, count);
      same &= std::memcmp(some.data(), together.data() + (tokens - count) * width, some.size() * sizeof(float)) == 0;
    }
    checks.expect(same, name + ": a token has the bits that it has alone");
    const float kept = x[5];
    x[5] = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> spoiled = run(0, tokens);
    x[5] = kept;
    bool only = std::memcmp(spoiled.data() + width, together.data() + width, (tokens - 1) * width * sizeof(float)) == 0;
    for (std::int64_t i = 0; i < width; ++i) only &= std::isnan(spoiled[i]);
    checks.expect(only, name + ": a NaN spoils its token alone");
  }
}

// Codes and scales stand for the weights within what the bits cost: 4 bits 8 to 10 % of normally distributed ones, 8 bits 0.5 %.
void check_rounding(Checks& checks) {
  constexpr std::int64_t rows = 3, columns = 384;
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> weight(rows * columns), importance(columns);
  for (float& value : weight) value = normal(random);
  for (float& value : importance) value = std::exp(normal(random) / 4);
  std::vector<float> divisors;
  for (int i = 0; i < 16; ++i) divisors.push_back(6.5f + 0.3f * static_cast<float>(i));
  for (int i = 0; i < 16; ++i) divisors.push_back(-divisors[i]);
  const std::vector<float> of_bytes(16, 127.0f);
  for (const std::int64_t bits : {4, 8})
    for (const std::int64_t block : {16, 32, 64, 128})
      for (const std::int64_t scale_type : {0, 1, 2})
        for (const float* factors : {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
          const std::vector<float>& candidates = bits == 4 ? divisors : of_bytes;
          std::vector<std::int8_t> codes(rows * columns);
          std::vector<float> scales(rows * columns / block);
          const EchovlmRoundBlocks call{bits, block, rows, columns, weight.data(), factors, candidates.data(),
                                        static_cast<std::int64_t>(candidates.size()), scale_type, codes.data(), scales.data()};
          char error[256] = "";
          checks.expect(echovlm_round_blocks(&call, error, sizeof error) == 0, error);
          std::vector<float> values;
          for (std::int64_t i = 0; i < rows * columns; ++i) values.push_back(static_cast<float>(codes[i]) * scales[i / block]);
          const double most = bits == 4 ? 0.11 : 0.008;
          checks.expect(relative_error(values, {weight.begin(), weight.end()}) < most, "a rounded weight stands for the weight");
        }
}

// A block that is not finite has the scale NaN and the codes 0, one of zeros or of the smallest floats 0; others are as if alone.
void check_rounding_of_odd_values(Checks& checks) {
  constexpr std::int64_t block = 32, blocks = 6, columns = block * blocks;
  const std::vector<float> divisors(32, 7.0f), clean(columns, 0.5f);
  using Limits = std::numeric_limits<float>;
  const float odd[blocks] = {Limits::quiet_NaN(), -Limits::infinity(), 0.0f, Limits::denorm_min(), Limits::max(), 0.5f};
  for (const std::int64_t bits : {4, 8})
    for (const std::int64_t scale_type : {0, 1, 2}) {
      std::vector<float> weight(columns), scales(blocks), of_clean(blocks);
      std::vector<std::int8_t> codes(columns, 1), codes_of_clean(columns);
      for (std::int64_t i = 0; i < columns; ++i) weight[i] = odd[i / block];
      char error[256] = "";
      const auto encode = [&](const std::vector<float>& values, std::vector<std::int8_t>& to, std::vector<float>& by) {
        const EchovlmRoundBlocks call{bits, block, 1, columns, values.data(), nullptr, divisors.data(), 32, scale_type, to.data(), by.data()};
        checks.expect(echovlm_round_blocks(&call, error, sizeof error) == 0, error);
      };
      encode(weight, codes, scales);
      encode(clean, codes_of_clean, of_clean);
      bool right = std::isnan(scales[0]) && std::isnan(scales[1]) && scales[2] == 0 && scales[3] == 0 && scales[5] == of_clean[5];
      for (std::int64_t i = 0; i < 4 * block; ++i) right = right && codes[i] == 0;
      for (std::int64_t i = 5 * block; i < columns; ++i) right = right && codes[i] == codes_of_clean[i];
      checks.expect(right, "rounding, " + std::to_string(bits) + " bits: values that are not finite spoil their block alone");
    }
}

void check_tasks(Checks& checks) {
  for (const std::size_t tasks : {1, 2, 9, 200}) {
    std::vector<int> done(tasks);
    std::vector<std::vector<std::size_t>> of_worker(echovlm::kMaxWorkers), announced(echovlm::kMaxWorkers);
    const auto body = [&](std::size_t task, std::size_t worker, std::size_t following) {
      ++done[task];
      of_worker[worker].push_back(task);
      announced[worker].push_back(following);
    };
    echovlm::for_each_task(echovlm::OwnThreads(3), tasks, body);
    checks.expect(done == std::vector<int>(tasks, 1), "every task is done once");
    bool kept = true;
    for (std::size_t worker = 0; worker < echovlm::kMaxWorkers; ++worker)
      for (std::size_t i = 0; i < of_worker[worker].size(); ++i)
        if (announced[worker][i] < tasks) kept &= i + 1 < of_worker[worker].size() && of_worker[worker][i + 1] == announced[worker][i];
    checks.expect(kept, "a worker finishes the task that it was given");
    checks.expect(tasks < 200 || announced[0][0] < tasks, "of many tasks the next one is known");
  }
}

}  // namespace

int main(int count, char** names) {
  std::vector<std::string> kernels(names + 1, names + count);
  if (kernels.empty()) {
    std::string available = echovlm_available_kernels();
    for (std::size_t at = 0; at != std::string::npos;) {
      const std::size_t comma = available.find(',', at);
      kernels.push_back(available.substr(at, comma - at));
      at = comma == std::string::npos ? comma : comma + 1;
    }
  }
  Checks tasks;
  check_tasks(tasks);
  int failed = tasks.report("tasks");
  for (const std::string& kernel : kernels) {
    if (echovlm_set_kernel(kernel.c_str())) {
      std::printf("%s: this processor cannot run it; it has %s\n", kernel.c_str(), echovlm_available_kernels());
      return 1;
    }
    Checks checks;
    check_shapes(checks);
    check_batches(checks);
    check_many_tokens(checks);
    check_not_finite(checks);
    check_concurrent_calls(checks);
    check_linear(checks);
    check_linear_batches(checks);
    check_mlp(checks);
    check_rounding(checks);
    check_rounding_of_odd_values(checks);
    attention_checks::check_cached(checks);
    attention_checks::check_self(checks);
    failed += checks.report(kernel.c_str());
  }
  return failed != 0;
}
