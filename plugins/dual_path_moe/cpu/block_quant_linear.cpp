// Two phases: quantize the tokens; then multiply, one task per 64 rows of the weight and chunk of tokens.
#include "block_quant_linear.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace echovlm {
namespace {

constexpr std::size_t kTokenChunk = 256;
constexpr std::size_t kRows = 64;
constexpr std::size_t kQuantizeTokens = 8;

}  // namespace

void block_quant_linear(const Kernels& kernels, const Packing& packing, const BlockQuantLinearInputs& inputs, float* y,
                        const Threads& threads, Workspace& workspace) {
  const std::size_t width = inputs.weight.columns, tokens = inputs.tokens, rows = inputs.rows;
  packing.validate_width("input width", width);
  const Activations x =
      reserve_activations(packing, tokens, width, workspace.x_values, workspace.x_scales, workspace.x_sums);
  auto* list = workspace.token_lists.reserve<std::uint32_t>(tokens);
  std::iota(list, list + tokens, 0u);
  const auto quantize = [&](std::size_t task, std::size_t, std::size_t) {
    for (std::size_t token = task * kQuantizeTokens; token < std::min(tokens, (task + 1) * kQuantizeTokens); ++token)
      write_activations(kernels, packing, inputs.x + token * width, token, 0, width, 1.0f, x);
  };
  if (tokens <= kQuantizeTokens)
    quantize(0, 0, 0);  // cheaper than waking a thread
  else
    for_each_task(threads, (tokens + kQuantizeTokens - 1) / kQuantizeTokens, quantize);

  const std::size_t chunks = (tokens + kTokenChunk - 1) / kTokenChunk;
  const std::size_t tasks = (rows + kRows - 1) / kRows * chunks;
  const auto part = [&](std::size_t task) {
    const std::size_t row = task / chunks * kRows;
    return Part{inputs.weight, row, std::min(kRows, rows - row), 0, width};
  };
  for_each_task(threads, tasks, [&](std::size_t task, std::size_t worker, std::size_t following) {
    auto* scratch = workspace.workers[worker].reserve<std::uint8_t>(kScratchBytes + kTokenChunk * kRows * sizeof(float));
    auto* sums = reinterpret_cast<float*>(scratch + kScratchBytes);
    const Part these = part(task);
    const std::size_t row = these.row, some = these.rows;
    const std::size_t first = task % chunks * kTokenChunk, count = std::min(kTokenChunk, tokens - first);
    for (std::size_t i = 0; i < count; ++i) {
      std::fill(sums + i * kRows, sums + (i + 1) * kRows, 0.0f);
      if (inputs.bias) std::copy(inputs.bias + row, inputs.bias + row + some, sums + i * kRows);
    }
    multiply(kernels, packing, these, x, {list + first, count, false, 0}, {sums, kRows},
             following < tasks ? part(following) : these, scratch);
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(y + (first + i) * rows + row, sums + i * kRows, some * sizeof(float));
  });
}

}  // namespace echovlm
