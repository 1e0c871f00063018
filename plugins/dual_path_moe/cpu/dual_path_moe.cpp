// Three phases over a slab of up to 512 tokens: route and quantize; gate, up and SwiGLU of every group; down into the output.
//
// Each phase is one task list over all groups (a grouped product), so that threads share the weights evenly. A token's weight
// in a group is multiplied into the scales of its inner values, so that the down product also sums over the groups.
#include "dual_path_moe.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "inner_tasks.hpp"

namespace echovlm {
namespace {

constexpr std::size_t kSlab = 512;  // tokens processed together; bounds the memory of inner values
constexpr std::size_t kFewTokens = 2;
constexpr std::size_t kRouteTokens = 8;
constexpr std::size_t kDownRows = 64;
constexpr std::size_t kDownRowsOfFew = 32;

// Computes the softmax in place; subtracting the largest value avoids overflow.
void softmax(float* values, std::size_t count) {
  const float largest = *std::max_element(values, values + count);
  float total = 0;
  for (std::size_t i = 0; i < count; ++i) total += values[i] = std::exp(values[i] - largest);
  for (std::size_t i = 0; i < count; ++i) values[i] /= total;
}

}  // namespace

// Inputs and intermediate results of up to kSlab tokens.
struct DualPathMoE::Slab {
  const Kernels& kernels;
  const DualPathMoEInputs& inputs;
  const Threads& threads;
  Workspace& workspace;
  const float* x;  // [tokens, hidden]
  std::size_t tokens;
  Activations quantized_x, inner;
  float* logits;          // [tokens, experts + 3]: router, shared gate, coefficients
  float* weights;         // [groups, kSlab]
  std::uint32_t* lists;   // [groups, kSlab]: the tokens of each group, ascending
  std::uint32_t* counts;  // [groups]
};

DualPathMoE::DualPathMoE(std::vector<std::size_t> group_widths, std::size_t top_k, bool norm_topk_prob, Packing packing)
    : group_widths_(std::move(group_widths)), top_k_(top_k), norm_topk_prob_(norm_topk_prob), packing_(packing) {
  if (group_widths_.size() < 3)
    throw std::invalid_argument("group_widths has " + std::to_string(group_widths_.size()) +
                                " entries, but it needs one for dense, one for shared and one for each expert.");
  packing_.validate();
  std::size_t offset = 0;
  for (const std::size_t width : group_widths_) {
    packing_.validate_width("group width", width);
    offsets_.push_back(offset);
    offset += width;
  }
  offsets_.push_back(offset);
  if (top_k_ < 1 || top_k_ > experts())
    throw std::invalid_argument("top_k " + std::to_string(top_k_) + " is not between 1 and the " +
                                std::to_string(experts()) + " experts.");
}

void DualPathMoE::run(const Kernels& kernels, const DualPathMoEInputs& inputs, float* y, const Threads& threads,
                      Workspace& workspace) const {
  packing_.validate_width("hidden width", inputs.hidden);
  const std::size_t groups = group_widths_.size();
  const std::size_t most = std::min(kSlab, inputs.tokens);
  Slab slab{kernels, inputs, threads, workspace, nullptr, 0, {}, {}, nullptr, nullptr, nullptr, nullptr};
  if (packing_.bits != 0)
    slab.quantized_x = reserve_activations(packing_, most, inputs.hidden, workspace.x_values, workspace.x_scales,
                                           workspace.x_sums);
  slab.inner = reserve_activations(packing_, most, total_width(), workspace.inner_values, workspace.inner_scales,
                                   workspace.inner_sums);
  slab.logits = workspace.logits.reserve<float>(most * (experts() + 3));
  slab.weights = workspace.group_weights.reserve<float>(groups * kSlab);
  slab.lists = workspace.token_lists.reserve<std::uint32_t>(groups * kSlab);
  slab.counts = workspace.list_counts.reserve<std::uint32_t>(groups);
  for (std::size_t first = 0; first < inputs.tokens; first += kSlab) {
    slab.x = inputs.x + first * inputs.hidden;
    slab.tokens = std::min(kSlab, inputs.tokens - first);
    if (packing_.bits == 0) slab.quantized_x.floats = {slab.x, inputs.hidden};
    if (slab.tokens <= kRouteTokens) {
      route(slab, 0, slab.tokens);  // cheaper than waking a thread
    } else {
      for_each_task(threads, (slab.tokens + kRouteTokens - 1) / kRouteTokens, [&](std::size_t task, std::size_t, std::size_t) {
        const std::size_t at = task * kRouteTokens;
        route(slab, at, std::min(kRouteTokens, slab.tokens - at));
      });
    }
    list_tokens(slab);
    inner_sweep(slab);
    down_sweep(slab, y + first * inputs.hidden);
  }
}

void DualPathMoE::route(const Slab& slab, std::size_t first, std::size_t count) const {
  const std::size_t hidden = slab.inputs.hidden, columns = experts() + 3;
  std::uint32_t tokens[kRouteTokens];
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<std::uint32_t>(first + i);
  const TokenList list{tokens, count, false, 0};
  float* logits = slab.logits + first * columns;
  std::fill(logits, logits + count * columns, 0.0f);
  const auto project = [&](const float* weight, std::size_t rows, std::size_t column) {
    slab.kernels.float_product({weight, FloatType::kFloat32, hidden, rows, hidden}, {slab.x, hidden}, list,
                               {logits + column, columns});
  };
  project(slab.inputs.router, experts(), 0);
  project(slab.inputs.shared_gate, 1, experts());
  project(slab.inputs.coefficient, 2, experts() + 1);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t token = first + i;
    float* router = logits + i * columns;
    const float shared = 1.0f / (1.0f + std::exp(-router[experts()]));
    float* coefficients = router + experts() + 1;
    for (int c = 0; c < 2; ++c) coefficients[c] += slab.inputs.coefficient_bias[c];
    softmax(coefficients, 2);
    softmax(router, experts());
    const auto weight = [&](std::size_t group) -> float& { return slab.weights[group * kSlab + token]; };
    weight(0) = coefficients[1];
    weight(1) = coefficients[0] * shared;
    for (std::size_t e = 0; e < experts(); ++e) weight(2 + e) = -1.0f;  // not chosen
    float kept = 0;
    for (std::size_t k = 0; k < top_k_; ++k) {
      std::size_t best = experts();
      for (std::size_t e = 0; e < experts(); ++e)
        if (weight(2 + e) == -1.0f && (best == experts() || router[e] > router[best])) best = e;
      kept += router[best];
      weight(2 + best) = router[best];
    }
    for (std::size_t e = 0; e < experts(); ++e) {
      float& p = weight(2 + e);
      p = p == -1.0f ? 0.0f : coefficients[0] * (norm_topk_prob_ ? p / kept : p);
    }
    if (packing_.bits != 0)
      write_activations(slab.kernels, packing_, slab.x + token * hidden, token, 0, hidden, 1.0f, slab.quantized_x);
  }
}

void DualPathMoE::list_tokens(Slab& slab) const {
  for (std::size_t group = 0; group < group_widths_.size(); ++group) {
    std::uint32_t* list = slab.lists + group * kSlab;
    std::size_t count = 0;
    for (std::size_t token = 0; token < slab.tokens; ++token)
      if (slab.weights[group * kSlab + token] != 0) list[count++] = static_cast<std::uint32_t>(token);
    slab.counts[group] = static_cast<std::uint32_t>(count);
  }
}

void DualPathMoE::inner_sweep(const Slab& slab) const {
  auto& tasks = slab.workspace.tasks;
  tasks.clear();
  for (std::size_t group = 0; group < group_widths_.size(); ++group)
    for (std::size_t inner = 0; inner < group_widths_[group]; inner += kInnerChunk)
      for (std::size_t first = 0; first < slab.counts[group]; first += kTokenChunk)
        tasks.push_back({static_cast<std::uint32_t>(group), static_cast<std::uint32_t>(inner),
                         static_cast<std::uint32_t>(std::min(kInnerChunk, group_widths_[group] - inner)),
                         static_cast<std::uint32_t>(first),
                         static_cast<std::uint32_t>(std::min(kTokenChunk, slab.counts[group] - first))});
  const std::size_t hidden = slab.inputs.hidden;
  const auto part = [&](const Matrix& matrix, const InnerTask& task) {
    return Part{matrix, offsets_[task.group] + task.first_inner, task.inner, 0, hidden};
  };
  for_each_task(slab.threads, tasks.size(), [&](std::size_t index, std::size_t worker, std::size_t following) {
    const InnerTask& task = tasks[index];
    const WorkerMemory memory = worker_memory(slab.workspace.workers[worker]);
    const TokenList list{slab.lists + task.group * kSlab + task.first, task.count, false, 0};
    const Part gate_rows = part(slab.inputs.gate, task), up_rows = part(slab.inputs.up, task);
    const std::size_t column = gate_rows.row;
    std::fill(memory.sums, memory.sums + task.count * kInnerStride, 0.0f);
    multiply(slab.kernels, packing_, gate_rows, slab.quantized_x, list, {memory.sums, kInnerStride}, up_rows, memory.scratch);
    multiply(slab.kernels, packing_, up_rows, slab.quantized_x, list, {memory.sums + kInnerChunk, kInnerStride},
             following < tasks.size() ? part(slab.inputs.gate, tasks[following]) : up_rows, memory.scratch);
    for (std::size_t i = 0; i < task.count; ++i) {
      const std::size_t token = list.tokens[i];
      const float weight = slab.weights[task.group * kSlab + token];
      float* gate = memory.sums + i * kInnerStride;
      if (packing_.bits == 0) {
        slab.kernels.swiglu(gate, gate + kInnerChunk, task.inner, weight);
        std::memcpy(const_cast<float*>(slab.inner.floats.values) + token * slab.inner.floats.stride + column, gate,
                    task.inner * sizeof(float));
      } else {
        slab.kernels.swiglu(gate, gate + kInnerChunk, task.inner, 1.0f);
        write_activations(slab.kernels, packing_, gate, token, column, task.inner, weight, slab.inner);
      }
    }
  });
}

void DualPathMoE::down_sweep(const Slab& slab, float* y) const {
  const std::size_t hidden = slab.inputs.hidden, groups = group_widths_.size();
  const std::size_t rows_of_task = slab.tokens <= kFewTokens ? kDownRowsOfFew : kDownRows;
  const std::size_t chunks = (slab.tokens + kTokenChunk - 1) / kTokenChunk;
  const std::size_t tasks = (hidden + rows_of_task - 1) / rows_of_task * chunks;
  // All tokens use the dense and the shared group, so their adjacent columns are multiplied as one part. Adjacent experts are never
  // joined: the summation order of a token would then depend on which experts other tokens chose.
  const bool all = slab.counts[0] == slab.tokens && slab.counts[1] == slab.tokens;
  const auto after = [&](std::size_t group) { return group == 0 && all ? 2 : group + 1; };
  const auto with_tokens = [&](std::size_t group) {
    while (group < groups && slab.counts[group] == 0) ++group;
    return group;
  };
  const auto part = [&](std::size_t task, std::size_t group) {
    const std::size_t row = task / chunks * rows_of_task;
    return Part{slab.inputs.down, row, std::min(rows_of_task, hidden - row), offsets_[group],
                offsets_[after(group)] - offsets_[group]};
  };
  for_each_task(slab.threads, tasks, [&](std::size_t task, std::size_t worker, std::size_t following) {
    const WorkerMemory memory = worker_memory(slab.workspace.workers[worker]);
    const std::size_t row = task / chunks * rows_of_task, rows = std::min(rows_of_task, hidden - row);
    const std::size_t first = task % chunks * kTokenChunk, count = std::min(kTokenChunk, slab.tokens - first);
    std::fill(memory.sums, memory.sums + count * kDownRows, 0.0f);
    for (std::size_t group = with_tokens(0); group < groups;) {
      const std::uint32_t* list = slab.lists + group * kSlab;
      const std::uint32_t* end = list + slab.counts[group];
      const std::uint32_t* from = std::lower_bound(list, end, first);
      const std::uint32_t* to = std::lower_bound(from, end, first + count);
      const std::size_t next = with_tokens(after(group));
      const Part these = part(task, group);
      const Part then = next < groups ? part(task, next) : following < tasks ? part(following, with_tokens(0)) : these;
      multiply(slab.kernels, packing_, these, slab.inner,
               {from, static_cast<std::size_t>(to - from), true, static_cast<std::uint32_t>(first)},
               {memory.sums, kDownRows}, then, memory.scratch);
      group = next;
    }
    for (std::size_t i = 0; i < count; ++i)
      std::memcpy(y + (first + i) * hidden + row, memory.sums + i * kDownRows, rows * sizeof(float));
  });
}

}  // namespace echovlm
