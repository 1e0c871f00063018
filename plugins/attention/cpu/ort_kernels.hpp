// The attention operators as ONNX Runtime calls them: inputs, attributes and outputs by README.md's numbers.
#pragma once

#include "../../dual_path_moe/cpu/dispatch.hpp"
#include "../../dual_path_moe/onnxruntime/ort_session.hpp"
#include "cached_attention.hpp"
#include "self_attention.hpp"

namespace echovlm::ort {

inline const std::int64_t* integers(const Call& call, std::size_t index, const char* name, std::size_t count) {
  const Tensor tensor = call.input(index);
  if (tensor.type != kInt64 || tensor.count() != count)
    throw std::invalid_argument(std::string(name) + " must be int64 [" + std::to_string(count) + "].");
  return static_cast<const std::int64_t*>(tensor.data);
}

// A scale for each value of each head, in whatever shape; null unless `wanted`.
inline const float* scales(const Call& call, std::size_t index, const char* name, std::size_t count, bool wanted) {
  if (!wanted) return nullptr;
  const Tensor tensor = call.input(index);
  if (tensor.type != kFloat || tensor.count() != count)
    throw std::invalid_argument(std::string(name) + " must be float32 with " + std::to_string(count) + " values, for caches are int8.");
  return static_cast<const float*>(tensor.data);
}

class CachedAttentionKernel {
 public:
  static constexpr const char* kName = "CachedAttention";
  static constexpr std::size_t kInputs = 9, kRequiredInputs = 7;
  static constexpr bool typed_float(std::size_t input) { return input < 3 || input > 6; }

  CachedAttentionKernel(const Api& api, const Attributes& attributes)
      : api_(api), heads_(attributes.size("heads")), kv_heads_(attributes.size("kv_heads")) {
    if (heads_ == 0 || kv_heads_ == 0) throw std::invalid_argument("heads and kv_heads must be positive.");
  }

  void compute(KernelContext* context) const {
    const Call call(api_, context);
    const Tensor qkv = call.input(0), keys = call.input(5), values = call.input(6);
    const std::size_t rows = qkv.leading(), dim = qkv.last() / (heads_ + 2 * kv_heads_);
    const auto size = [](const Tensor& tensor, std::size_t axis) { return static_cast<std::size_t>(tensor.shape[axis]); };
    if (keys.rank != 5 || values.rank != 4 || keys.type != values.type || qkv.last() != dim * (heads_ + 2 * kv_heads_) ||
        size(keys, 1) != kv_heads_ || size(keys, 3) != dim || size(keys, 4) != kKeyBlock || size(values, 0) != size(keys, 0) ||
        size(values, 1) != kv_heads_ || size(values, 2) != size(keys, 2) * kKeyBlock || size(values, 3) != dim)
      throw std::invalid_argument(
          "keys must be [slots, kv_heads, blocks, dim, 16] and values [slots, kv_heads, 16 blocks, dim], of one type.");
    if (keys.type != kFloat && keys.type != kFloat16 && keys.type != kInt8)
      throw std::invalid_argument("caches must be float32, float16 or int8.");
    const bool bytes = keys.type == kInt8;
    const CachedAttentionInputs inputs{
        rows,
        heads_,
        kv_heads_,
        dim,
        static_cast<const float*>(qkv.data),
        call.floats(1, "cos", rows, dim / 2),
        call.floats(2, "sin", rows, dim / 2),
        integers(call, 3, "slots", rows),
        integers(call, 4, "positions", rows),
        const_cast<void*>(keys.data),  // written in place
        const_cast<void*>(values.data),
        keys.type == kFloat     ? CacheType::kFloat32
        : keys.type == kFloat16 ? CacheType::kFloat16
                                : CacheType::kInt8,
        size(keys, 0),
        size(values, 2),
        scales(call, 7, "key_scales", kv_heads_ * dim, bytes),
        scales(call, 8, "value_scales", kv_heads_ * dim, bytes)};
    constexpr std::size_t kMaxRank = 8;
    std::int64_t shape[kMaxRank];
    if (qkv.rank == 0 || qkv.rank > kMaxRank) throw std::invalid_argument("qkv must have between 1 and 8 axes.");
    std::copy(qkv.shape, qkv.shape + qkv.rank, shape);
    shape[qkv.rank - 1] = static_cast<std::int64_t>(heads_ * dim);
    float* y = call.output(shape, qkv.rank);
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    cached_attention(kernels(), inputs, y, SessionThreads(api_, context), *workspace);
  }

 private:
  const Api& api_;
  std::size_t heads_, kv_heads_;
};

class SelfAttentionKernel {
 public:
  static constexpr const char* kName = "SelfAttention";
  static constexpr std::size_t kInputs = 4, kRequiredInputs = 3;
  static constexpr bool typed_float(std::size_t input) { return input < 3; }

  SelfAttentionKernel(const Api& api, const Attributes& attributes) : api_(api), heads_(attributes.size("heads")), bits_(attributes.size("bits")) {
    if (heads_ == 0) throw std::invalid_argument("heads must be positive.");
    if (bits_ != 0 && bits_ != 8) throw std::invalid_argument("SelfAttention takes bits 0 or 8.");
  }

  void compute(KernelContext* context) const {
    const Call call(api_, context);
    const Tensor qkv = call.input(0), offsets = call.input(3);
    const std::size_t rows = qkv.leading(), dim = qkv.last() / 3 / heads_;
    if (qkv.rank != 3 || qkv.shape[0] != 1 || qkv.last() != 3 * heads_ * dim)
      throw std::invalid_argument("qkv must be [1, rows, 3 heads dim].");
    const std::int64_t all[] = {0, static_cast<std::int64_t>(rows)};
    const std::size_t bounds = offsets.data ? offsets.count() : 2;
    const std::int64_t shape[] = {1, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(heads_ * dim)};
    float* y = call.output(shape, 3);
    if (rows == 0) return;
    const SelfAttentionInputs inputs{rows,
                                     heads_,
                                     dim,
                                     bits_ == 8,
                                     static_cast<const float*>(qkv.data),
                                     call.floats(1, "cos", rows, dim / 2),
                                     call.floats(2, "sin", rows, dim / 2),
                                     offsets.data ? integers(call, 3, "offsets", bounds) : all,
                                     bounds - 1};
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    self_attention(kernels(), inputs, y, SessionThreads(api_, context), *workspace);
  }

 private:
  const Api& api_;
  std::size_t heads_, bits_;
};

}  // namespace echovlm::ort
