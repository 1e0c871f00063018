#include "linear_launcher.hpp"

#include <stdexcept>

namespace echovlm {
namespace {

constexpr const char* kNames[kLinearInputs] = {"x", "weight", "scale"};
constexpr std::uint32_t kOneExpert = 1;

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

std::string shown(const Shape& shape) { return "[" + joined(shape) + "]"; }

void check_count(std::size_t count) {
  if (count != kLinearInputs)
    refuse("there are " + std::to_string(count) + " inputs, but there must be 3: x, weight and scale.");
}

}  // namespace

void LinearAttributes::validate() const {
  if (bits != 8) refuse("bits " + std::to_string(bits) + " is not 8.");
  if (block_size != 64 && block_size != 128) refuse("block_size " + std::to_string(block_size) + " is neither 64 nor 128.");
}

ElementType linear_input_type(std::size_t index) { return index == 1 ? ElementType::kInt8 : ElementType::kFloat; }

void check_linear_types(const std::vector<ElementType>& types) {
  check_count(types.size());
  for (std::size_t i = 0; i < kLinearInputs; ++i)
    if (types[i] != linear_input_type(i))
      refuse(std::string(kNames[i]) + " is " + to_string(types[i]) + ", but it must be " + to_string(linear_input_type(i)) + ".");
}

void check_linear_shapes(const LinearAttributes& attributes, const std::vector<Shape>& shapes) {
  check_count(shapes.size());
  const Shape &x = shapes[0], &weight = shapes[1];
  if (x.empty() || x.size() > kMaxRank)
    refuse("x has " + std::to_string(x.size()) + " axes, but it must have between 1 and 8.");
  if (weight.size() != 2 || weight[0] < 1 || weight[1] < 1 || weight[1] % attributes.block_size != 0)
    refuse("weight has shape " + shown(weight) + ", but it must have two axes, the second a multiple of block_size " +
           std::to_string(attributes.block_size) + ".");
  if (x.back() != weight[1])
    refuse("x has shape " + shown(x) + ", but its last axis must be weight's second, " + std::to_string(weight[1]) + ".");
  if (const Shape expected{weight[0], weight[1] / attributes.block_size}; shapes[2] != expected)
    refuse("scale has shape " + shown(shapes[2]) + ", but it must have " + shown(expected) + ".");
}

LinearLauncher::LinearLauncher(const Archive& archive, const LinearAttributes& attributes, std::int64_t tokens,
                               std::int64_t inputs, std::int64_t outputs)
    : tokens_(tokens),
      inputs_(inputs),
      outputs_(outputs),
      kernel_(load_kernel(archive, current_sm(),
                          {kAny, static_cast<std::uint32_t>(attributes.bits), static_cast<std::uint32_t>(attributes.block_size),
                           kOneExpert},
                          "linear")),
      grid_(plan_linear(tokens, outputs, kernel_.record->tile_tokens, kernel_.record->tile_rows)) {}

void LinearLauncher::launch(const void* const* tensors, void* y, cuda::Stream stream) const {
  Parameters parameters;
  for (std::size_t i = 0; i < kLinearInputs; ++i) {
    check_aligned(tensors[i], kNames[i]);
    parameters.add(tensors[i]);
  }
  check_aligned(y, "y");
  parameters.add_all(static_cast<const void*>(y), tokens_, inputs_, outputs_);
  parameters.add_scratch();
  launch_kernel(kernel_, grid_, parameters, stream);
}

}  // namespace echovlm
