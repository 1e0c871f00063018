// Two phases: quantize the tokens; then multiply, one task per 64 rows of the weight and chunk of tokens.
#include "block_quant_linear.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "inner_tasks.hpp"

namespace echovlm {
namespace {

constexpr std::size_t kRows = 64;
constexpr std::size_t kQuantizeTokens = 8;

}  // namespace

void quantize_tokens(const Kernels& kernels, const Packing& packing, const float* x, std::size_t tokens, std::size_t width,
                     const Activations& to, const Threads& threads) {
  const auto quantize = [&](std::size_t task, std::size_t, std::size_t) {
    for (std::size_t token = task * kQuantizeTokens; token < std::min(tokens, (task + 1) * kQuantizeTokens); ++token)
      write_activations(kernels, packing, x + token * width, token, 0, width, 1.0f, to);
  };
  if (tokens <= kQuantizeTokens)
    quantize(0, 0, 0);  // cheaper than waking a thread
  else
    for_each_task(threads, (tokens + kQuantizeTokens - 1) / kQuantizeTokens, quantize);
}

void begin_sums(const float* bias, std::size_t rows, std::size_t count, const Accumulator& sums) {
  const std::size_t written = (rows + kAccumulatorPadding - 1) / kAccumulatorPadding * kAccumulatorPadding;
  const std::size_t given = bias ? rows : 0;
  for (std::size_t i = 0; i < count; ++i) {
    float* row = sums.values + i * sums.stride;
    std::copy(bias, bias + given, row);
    std::fill(row + given, row + written, 0.0f);
  }
}

void multiply_tokens(const Kernels& kernels, const Packing& packing, const Linear& linear, std::size_t rows, const Activations& x,
                     std::size_t tokens, float* y, const Threads& threads, Workspace& workspace) {
  auto* list = workspace.token_lists.reserve<std::uint32_t>(tokens);
  std::iota(list, list + tokens, 0u);
  const std::size_t chunks = (tokens + kTokenChunk - 1) / kTokenChunk;
  const std::size_t tasks = (rows + kRows - 1) / kRows * chunks;
  const auto part = [&](std::size_t task) {
    const std::size_t row = task / chunks * kRows;
    return Part{linear.weight, row, std::min(kRows, rows - row), 0, linear.weight.columns};
  };
  for_each_task(threads, tasks, [&](std::size_t task, std::size_t worker, std::size_t following) {
    auto* scratch = workspace.workers[worker].reserve<std::uint8_t>(kScratchBytes + kTokenChunk * kRows * sizeof(float));
    auto* sums = reinterpret_cast<float*>(scratch + kScratchBytes);
    const Part these = part(task);
    const std::size_t row = these.row, some = these.rows;
    const std::size_t first = task % chunks * kTokenChunk, count = std::min(kTokenChunk, tokens - first);
    begin_sums(linear.bias ? linear.bias + row : nullptr, some, count, {sums, kRows});
    multiply(kernels, packing, these, x, {list + first, count, false, 0}, {sums, kRows},
             following < tasks ? part(following) : these, scratch);
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(y + (first + i) * rows + row, sums + i * kRows, some * sizeof(float));
  });
}

void block_quant_linear(const Kernels& kernels, const Packing& packing, const BlockQuantLinearInputs& inputs, float* y,
                        const Threads& threads, Workspace& workspace) {
  const std::size_t width = inputs.linear.weight.columns, tokens = inputs.tokens;
  packing.validate_width("input width", width);
  const Activations x =
      reserve_activations(packing, tokens, width, workspace.x_values, workspace.x_scales, workspace.x_sums);
  quantize_tokens(kernels, packing, inputs.x, tokens, width, x, threads);
  multiply_tokens(kernels, packing, inputs.linear, inputs.rows, x, tokens, y, threads, workspace);
}

}  // namespace echovlm
