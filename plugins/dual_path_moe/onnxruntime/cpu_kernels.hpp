// DualPathMoE, BlockQuantLinear and BlockQuantMLP as ONNX Runtime's CPU provider calls them; input numbers are those of ../README.md.
#pragma once

#include <algorithm>

#include "block_quant_linear.hpp"
#include "block_quant_mlp.hpp"
#include "dispatch.hpp"
#include "dual_path_moe.hpp"
#include "ort_session.hpp"

namespace echovlm::ort {

inline Packing packing_of(const Attributes& attributes) {
  return {static_cast<int>(attributes.integer("bits")), attributes.size("block_size")};
}

class DualPathMoEKernel {
 public:
  static constexpr const char* kName = "DualPathMoE";
  static constexpr std::size_t kInputs = 11, kRequiredInputs = 8;
  static constexpr bool typed_float(std::size_t input) { return input == 0; }

  DualPathMoEKernel(const Api& api, const Attributes& attributes)
      : api_(api),
        moe_(attributes.sizes("group_widths"), attributes.size("top_k"), attributes.integer("norm_topk_prob") != 0,
             packing_of(attributes)) {}

  void compute(KernelContext* context) const {
    const Call call(api_, context);
    const Tensor x = call.input(0);
    const std::size_t hidden = x.last(), total = moe_.total_width();
    const Packing& packing = moe_.packing();
    packing.validate_width("hidden width", hidden);
    const DualPathMoEInputs inputs{static_cast<const float*>(x.data),
                                   x.leading(),
                                   hidden,
                                   call.floats(1, "router", moe_.experts(), hidden),
                                   call.floats(2, "shared_gate", 1, hidden),
                                   call.floats(3, "coefficient", 2, hidden),
                                   call.floats(4, "coefficient_bias", 1, 2),
                                   call.weight(5, 8, "gate", packing, total, hidden),
                                   call.weight(6, 9, "up", packing, total, hidden),
                                   call.weight(7, 10, "down", packing, hidden, total)};
    float* y = call.output(x.shape, x.rank);
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    moe_.run(kernels(), inputs, y, SessionThreads(api_, context), *workspace);
  }

 private:
  const Api& api_;
  DualPathMoE moe_;
};

class BlockQuantLinearKernel {
 public:
  static constexpr const char* kName = "BlockQuantLinear";
  static constexpr std::size_t kInputs = 4, kRequiredInputs = 3;
  static constexpr bool typed_float(std::size_t input) { return input == 0 || input == 3; }

  BlockQuantLinearKernel(const Api& api, const Attributes& attributes) : api_(api), packing_(packing_of(attributes)) {
    packing_.validate();
    if (packing_.bits == 0) throw std::invalid_argument("BlockQuantLinear takes bits 4 or 8.");
  }

  void compute(KernelContext* context) const {
    const Call call(api_, context);
    const Tensor x = call.input(0), weight = call.input(1);
    const std::size_t columns = x.last();
    packing_.validate_width("input width", columns);
    const std::size_t rows = weight.leading();
    const float* bias = call.input(3).data ? call.floats(3, "bias", 1, rows) : nullptr;
    const BlockQuantLinearInputs inputs{static_cast<const float*>(x.data), x.leading(),
                                        {call.weight(1, 2, "weight", packing_, rows, columns), bias}, rows};
    std::int64_t shape[kMaxRank];
    if (x.rank == 0 || x.rank > kMaxRank) throw std::invalid_argument("x must have between 1 and 8 axes.");
    std::copy(x.shape, x.shape + x.rank, shape);
    shape[x.rank - 1] = static_cast<std::int64_t>(rows);
    float* y = call.output(shape, x.rank);
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    block_quant_linear(kernels(), packing_, inputs, y, SessionThreads(api_, context), *workspace);
  }

 private:
  static constexpr std::size_t kMaxRank = 8;
  const Api& api_;
  Packing packing_;
};

class BlockQuantMLPKernel {
 public:
  static constexpr const char* kName = "BlockQuantMLP";
  static constexpr std::size_t kInputs = 10, kRequiredInputs = 5;
  static constexpr bool typed_float(std::size_t input) { return input == 0 || input == 5 || input == 6 || input == 9; }

  BlockQuantMLPKernel(const Api& api, const Attributes& attributes)
      : api_(api), packing_{packing_of(attributes), {packing_of(attributes).bits, attributes.size("inner_block_size")}} {
    packing_.validate();
  }

  void compute(KernelContext* context) const {
    const Call call(api_, context);
    const Tensor x = call.input(0);
    const std::size_t width = x.last(), inner = call.input(1).leading();
    packing_.validate_widths(width, inner);
    const auto bias = [&](std::size_t index, const char* name, std::size_t rows) {
      return call.input(index).data ? call.floats(index, name, 1, rows) : nullptr;
    };
    const Linear up{call.weight(1, 2, "up", packing_.x, inner, width), bias(5, "up_bias", inner)};
    const Linear down{call.weight(3, 4, "down", packing_.inner, width, inner), bias(6, "down_bias", width)};
    Linear gate;
    if (call.input(7).data) gate = {call.weight(7, 8, "gate", packing_.x, inner, width), bias(9, "gate_bias", inner)};
    const BlockQuantMLPInputs inputs{static_cast<const float*>(x.data), x.leading(), width, inner, up, down, gate};
    float* y = call.output(x.shape, x.rank);
    WorkspacePool::Lease workspace(WorkspacePool::shared());
    block_quant_mlp(kernels(), packing_, inputs, y, SessionThreads(api_, context), *workspace);
  }

 private:
  const Api& api_;
  BlockQuantMLPPacking packing_;
};

}  // namespace echovlm::ort
