// Converts plain C arguments and calls the operators.
#include "c_interface.hpp"

#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include "../../attention/cpu/cached_attention.hpp"
#include "../../attention/cpu/self_attention.hpp"
#include "block_quant_linear.hpp"
#include "block_quant_mlp.hpp"
#include "dispatch.hpp"
#include "dual_path_moe.hpp"
#include "own_threads.hpp"

namespace {

using namespace echovlm;

Matrix matrix(const EchovlmMatrix& from, std::int64_t columns) {
  return {from.values, static_cast<FloatType>(from.type), from.scales, from.scale_type == 1,
          static_cast<std::size_t>(columns)};
}

template <class Work>
int with_error(char* error, std::size_t size, Work&& work) {
  try {
    work();
    return 0;
  } catch (const std::exception& thrown) {
    if (size != 0) {
      std::strncpy(error, thrown.what(), size - 1);
      error[size - 1] = '\0';
    }
    return 1;
  }
}

}  // namespace

int echovlm_dual_path_moe(const EchovlmDualPathMoE* call, char* error, std::size_t error_size) {
  return with_error(error, error_size, [&] {
    const DualPathMoE moe({call->group_widths, call->group_widths + call->groups}, static_cast<std::size_t>(call->top_k),
                          call->norm_topk_prob != 0,
                          {static_cast<int>(call->bits), static_cast<std::size_t>(call->block_size)});
    const auto total = static_cast<std::int64_t>(moe.total_width());
    const DualPathMoEInputs inputs{call->x,
                                   static_cast<std::size_t>(call->tokens),
                                   static_cast<std::size_t>(call->hidden),
                                   call->router,
                                   call->shared_gate,
                                   call->coefficient,
                                   call->coefficient_bias,
                                   matrix(call->gate, call->hidden),
                                   matrix(call->up, call->hidden),
                                   matrix(call->down, total)};
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    moe.run(kernels(), inputs, call->y, OwnThreads(static_cast<std::size_t>(call->threads)), *workspace);
  });
}

int echovlm_block_quant_linear(const EchovlmBlockQuantLinear* call, char* error, std::size_t error_size) {
  return with_error(error, error_size, [&] {
    const Packing packing{static_cast<int>(call->bits), static_cast<std::size_t>(call->block_size)};
    packing.validate();
    const BlockQuantLinearInputs inputs{call->x, static_cast<std::size_t>(call->tokens),
                                        {matrix(call->weight, call->columns), call->bias},
                                        static_cast<std::size_t>(call->rows)};
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    block_quant_linear(kernels(), packing, inputs, call->y, OwnThreads(static_cast<std::size_t>(call->threads)), *workspace);
  });
}

int echovlm_block_quant_mlp(const EchovlmBlockQuantMLP* call, char* error, std::size_t error_size) {
  return with_error(error, error_size, [&] {
    const int bits = static_cast<int>(call->bits);
    const BlockQuantMLPPacking packing{{bits, static_cast<std::size_t>(call->block_size)},
                                       {bits, static_cast<std::size_t>(call->inner_block_size)}};
    packing.validate();
    const BlockQuantMLPInputs inputs{call->x,
                                     static_cast<std::size_t>(call->tokens),
                                     static_cast<std::size_t>(call->width),
                                     static_cast<std::size_t>(call->inner),
                                     {matrix(call->up, call->width), call->up_bias},
                                     {matrix(call->down, call->inner), call->down_bias},
                                     {matrix(call->gate, call->width), call->gate_bias}};
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    block_quant_mlp(kernels(), packing, inputs, call->y, OwnThreads(static_cast<std::size_t>(call->threads)), *workspace);
  });
}

int echovlm_cached_attention(const EchovlmCachedAttention* call, char* error, std::size_t error_size) {
  return with_error(error, error_size, [&] {
    const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
    const CachedAttentionInputs inputs{size(call->rows),
                                       size(call->heads),
                                       size(call->kv_heads),
                                       size(call->dim),
                                       call->qkv,
                                       call->cos,
                                       call->sin,
                                       call->slots,
                                       call->positions,
                                       call->keys,
                                       call->values,
                                       static_cast<CacheType>(call->cache_type),
                                       size(call->slot_count),
                                       size(call->capacity),
                                       call->key_scales,
                                       call->value_scales};
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    cached_attention(kernels(), inputs, call->y, OwnThreads(size(call->threads)), *workspace);
  });
}

int echovlm_self_attention(const EchovlmSelfAttention* call, char* error, std::size_t error_size) {
  return with_error(error, error_size, [&] {
    const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
    const SelfAttentionInputs inputs{size(call->rows), size(call->heads), size(call->dim), call->bits == 8, call->qkv,
                                     call->cos,        call->sin,         call->offsets,   size(call->windows)};
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    self_attention(kernels(), inputs, call->y, OwnThreads(size(call->threads)), *workspace);
  });
}

int echovlm_round_blocks(const EchovlmRoundBlocks* call, char* error, std::size_t error_size) {
  return with_error(error, error_size, [&] {
    const Rounding how{static_cast<int>(call->bits), static_cast<std::size_t>(call->block_size), call->divisors,
                       static_cast<std::size_t>(call->candidates), static_cast<FloatType>(call->scale_type)};
    if ((how.bits != 4 && how.bits != 8) || how.block == 0 || call->columns % call->block_size != 0 || how.candidates == 0 ||
        how.candidates > kRoundingCandidates || how.candidates % (kRoundingCandidates / 2) != 0)
      throw std::invalid_argument("cannot round rows of " + std::to_string(call->columns) + " values to " + std::to_string(call->bits) +
                                  " bits in blocks of " + std::to_string(call->block_size));
    for (std::int64_t row = 0; row < call->rows; ++row)
      kernels().round_row(how, call->weight + row * call->columns, call->importance, static_cast<std::size_t>(call->columns),
                          call->codes + row * call->columns, call->scales + row * (call->columns / call->block_size));
  });
}

const char* echovlm_available_kernels() {
  static const std::string names = [] {
    std::string joined;
    for (const Kernels* found : available_kernels()) joined += (joined.empty() ? "" : ",") + std::string(found->name);
    return joined;
  }();
  return names.c_str();
}

const char* echovlm_kernel() { return kernels().name; }

int echovlm_set_kernel(const char* name) { return use_kernels(name) ? 0 : 1; }
