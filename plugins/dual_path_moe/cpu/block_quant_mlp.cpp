// Three phases over a slab of up to 2,048 tokens: quantize them; up, gate and the activation; down into the output.
//
// A task of the second phase quantizes its inner values while they are in the L2 cache: they are never written as floats.
#include "block_quant_mlp.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "inner_tasks.hpp"

namespace echovlm {
namespace {

constexpr std::size_t kSlab = 2048;  // tokens processed together; bounds the memory of inner values

struct Slab {
  const Kernels& kernels;
  const BlockQuantMLPPacking& packing;
  const BlockQuantMLPInputs& inputs;
  const Threads& threads;
  Workspace& workspace;
  Activations x, inner;

  bool gated() const { return inputs.gate.weight.values != nullptr; }
};

// One task per 128 inner values and chunk of tokens.
void inner_sweep(const Slab& slab, std::size_t tokens) {
  auto* list = slab.workspace.token_lists.reserve<std::uint32_t>(tokens);
  std::iota(list, list + tokens, 0u);
  const BlockQuantMLPInputs& inputs = slab.inputs;
  const Linear& first_of_task = slab.gated() ? inputs.gate : inputs.up;
  const std::size_t chunks = (tokens + kTokenChunk - 1) / kTokenChunk;
  const std::size_t tasks = (inputs.inner + kInnerChunk - 1) / kInnerChunk * chunks;
  const auto part = [&](const Linear& linear, std::size_t task) {
    const std::size_t row = task / chunks * kInnerChunk;
    return Part{linear.weight, row, std::min(kInnerChunk, inputs.inner - row), 0, inputs.width};
  };
  for_each_task(slab.threads, tasks, [&](std::size_t task, std::size_t worker, std::size_t following) {
    const WorkerMemory memory = worker_memory(slab.workspace.workers[worker]);
    const Part up_rows = part(inputs.up, task);
    const std::size_t row = up_rows.row, some = up_rows.rows;
    const std::size_t first = task % chunks * kTokenChunk, count = std::min(kTokenChunk, tokens - first);
    const Part next = following < tasks ? part(first_of_task, following) : up_rows;
    const std::size_t stride = slab.gated() ? kInnerStride : kInnerChunk;
    const auto product = [&](const Linear& linear, float* sums, const Part& then) {
      const Accumulator accumulator{sums, stride};
      begin_sums(linear.bias ? linear.bias + row : nullptr, some, count, accumulator);
      multiply(slab.kernels, slab.packing.x, part(linear, task), slab.x, {list + first, count, false, 0}, accumulator, then,
               memory.scratch);
    };
    if (slab.gated()) product(inputs.gate, memory.sums, up_rows);
    product(inputs.up, memory.sums + stride - kInnerChunk, next);
    for (std::size_t i = 0; i < count; ++i) {
      float* values = memory.sums + i * stride;
      if (slab.gated())
        slab.kernels.swiglu(values, values + kInnerChunk, some, 1.0f);
      else
        slab.kernels.quick_gelu(values, some);
      write_activations(slab.kernels, slab.packing.inner, values, first + i, row, some, 1.0f, slab.inner);
    }
  });
}

}  // namespace

void BlockQuantMLPPacking::validate() const {
  for (const Packing& one : {x, inner}) {
    one.validate();
    if (one.bits == 0) throw std::invalid_argument("bits is 0, but BlockQuantMLP's weights have 4 or 8.");
  }
}

void BlockQuantMLPPacking::validate_widths(std::size_t width, std::size_t inner_width) const {
  x.validate_width("input width", width);
  inner.validate_width("inner width", inner_width);
}

void block_quant_mlp(const Kernels& kernels, const BlockQuantMLPPacking& packing, const BlockQuantMLPInputs& inputs, float* y,
                     const Threads& threads, Workspace& workspace) {
  packing.validate_widths(inputs.width, inputs.inner);
  // Slabs of equal size: a last one of a few tokens would take as long to read and unpack all the weights.
  const std::size_t slabs = (inputs.tokens + kSlab - 1) / kSlab, most = slabs == 0 ? 0 : (inputs.tokens + slabs - 1) / slabs;
  const Slab slab{kernels,
                  packing,
                  inputs,
                  threads,
                  workspace,
                  reserve_activations(packing.x, most, inputs.width, workspace.x_values, workspace.x_scales, workspace.x_sums),
                  reserve_activations(packing.inner, most, inputs.inner, workspace.inner_values, workspace.inner_scales,
                                      workspace.inner_sums)};
  for (std::size_t first = 0; first < inputs.tokens; first += most) {
    const std::size_t tokens = std::min(most, inputs.tokens - first);
    quantize_tokens(kernels, packing.x, inputs.x + first * inputs.width, tokens, inputs.width, slab.x, threads);
    inner_sweep(slab, tokens);
    multiply_tokens(kernels, packing.inner, inputs.down, inputs.width, slab.inner, tokens, y + first * inputs.width, threads, workspace);
  }
}

}  // namespace echovlm
