// BlockQuantLinear on the GPU: y = x W^T with 8-bit weights, one kernel. README.md's table "One product" has its tensors.
#pragma once

#include <cstdint>
#include <vector>

#include "archive.hpp"
#include "kernel_call.hpp"
#include "signature.hpp"

namespace echovlm {

struct LinearAttributes {
  std::int32_t bits = 0;        // 8
  std::int32_t block_size = 0;  // 64 or 128

  // Throws std::invalid_argument with a message that names the attribute.
  void validate() const;
};

constexpr std::size_t kLinearInputs = 3;  // x, weight, scale

// All three throw std::invalid_argument. The weight's sizes and x's last axis must be known; others may be -1.
ElementType linear_input_type(std::size_t index);
void check_linear_types(const std::vector<ElementType>& types);
void check_linear_shapes(const LinearAttributes& attributes, const std::vector<Shape>& shapes);

class LinearLauncher {
 public:
  // Plans a product of `tokens` at least 1 and loads its kernel, as Launcher does.
  LinearLauncher(const Archive& archive, const LinearAttributes& attributes, std::int64_t tokens, std::int64_t inputs,
                 std::int64_t outputs);

  // `tensors` are device pointers to x, weight and scale. Neither allocates nor waits.
  void launch(const void* const* tensors, void* y, cuda::Stream stream) const;

 private:
  std::int64_t tokens_, inputs_, outputs_;
  LoadedKernel kernel_;
  Grid grid_;
};

}  // namespace echovlm
