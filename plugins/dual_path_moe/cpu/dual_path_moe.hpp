// DualPathMoE on the CPU: the operator of README.md, using the kernels of one instruction set.
#pragma once

#include <vector>

#include "matrix.hpp"

namespace echovlm {

struct DualPathMoEInputs {
  const float* x;  // [tokens, hidden]
  std::size_t tokens, hidden;
  const float* router;            // [E, hidden]
  const float* shared_gate;       // [1, hidden]
  const float* coefficient;       // [2, hidden]
  const float* coefficient_bias;  // [2]
  Matrix gate, up;                // [T, hidden]
  Matrix down;                    // [hidden, T]
};

class DualPathMoE {
 public:
  // Throws std::invalid_argument, with a message for the user, for attributes that README.md does not allow.
  DualPathMoE(std::vector<std::size_t> group_widths, std::size_t top_k, bool norm_topk_prob, Packing packing);

  std::size_t experts() const { return group_widths_.size() - 2; }
  std::size_t total_width() const { return offsets_.back(); }
  const Packing& packing() const { return packing_; }

  // Writes y [tokens, hidden]. Throws std::invalid_argument if `hidden` is not a multiple of the block.
  void run(const Kernels& kernels, const DualPathMoEInputs& inputs, float* y, const Threads& threads,
           Workspace& workspace) const;

 private:
  struct Slab;
  void route(const Slab& slab, std::size_t first, std::size_t count) const;
  void list_tokens(Slab& slab) const;
  void inner_sweep(const Slab& slab) const;
  void down_sweep(const Slab& slab, float* y) const;

  std::vector<std::size_t> group_widths_;
  std::vector<std::size_t> offsets_;  // index of each group's first inner value, then the total width
  std::size_t top_k_;
  bool norm_topk_prob_;
  Packing packing_;
};

}  // namespace echovlm
