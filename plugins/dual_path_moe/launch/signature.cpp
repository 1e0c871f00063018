#include "signature.hpp"

#include <stdexcept>

namespace echovlm {
namespace {

constexpr const char* kNames[kMaxInputs] = {"x",    "router", "shared_gate", "coefficient", "coefficient_bias", "gate",
                                            "up",   "down",   "gate_scale",  "up_scale",    "down_scale"};
constexpr std::size_t kFirstWeight = 5, kFirstScale = 8;

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

void check_count(const Attributes& attributes, std::size_t count) {
  if (count != input_count(attributes))
    refuse("there are " + std::to_string(count) + " inputs, but with bits " + std::to_string(attributes.bits) +
           " there must be " + std::to_string(input_count(attributes)) + ": x to " +
           input_name(input_count(attributes) - 1) + ".");
}

// The shape of every input but x.
Shape expected_shape(const Attributes& attributes, std::size_t index, std::int64_t hidden) {
  const std::int64_t total = attributes.total_width();
  const auto stored = [&](std::int64_t columns) { return attributes.bits == 4 ? columns / 2 : columns; };
  const auto blocks = [&](std::int64_t columns) { return columns / attributes.block_size; };
  switch (index) {
    case 1: return {attributes.experts(), hidden};
    case 2: return {1, hidden};
    case 3: return {2, hidden};
    case 4: return {2};
    case 5: case 6: return {total, stored(hidden)};
    case 7: return {hidden, stored(total)};
    case 8: case 9: return {total, blocks(hidden)};
    default: return {hidden, blocks(total)};
  }
}

bool fits(const Shape& given, const Shape& expected) {
  if (given.size() != expected.size()) return false;
  for (std::size_t axis = 0; axis < given.size(); ++axis)
    if (given[axis] != -1 && given[axis] != expected[axis]) return false;
  return true;
}

std::string to_string(const Shape& shape) { return "[" + joined(shape) + "]"; }

}  // namespace

std::size_t input_count(const Attributes& attributes) { return attributes.bits == 0 ? kFirstScale : kMaxInputs; }

const char* input_name(std::size_t index) { return kNames[index]; }

const char* to_string(ElementType type) {
  switch (type) {
    case ElementType::kHalf: return "HALF";
    case ElementType::kBFloat16: return "BF16";
    case ElementType::kFloat: return "FLOAT";
    case ElementType::kInt8: return "INT8";
    default: return "of another type";
  }
}

ElementType input_type(const Attributes& attributes, std::size_t index, ElementType x) {
  if (index == 0) return x;
  if (index >= kFirstScale) return ElementType::kFloat;
  return index >= kFirstWeight && attributes.bits == 4 ? ElementType::kInt8 : x;
}

void check_types(const Attributes& attributes, const std::vector<ElementType>& types) {
  check_count(attributes, types.size());
  if (types[0] != ElementType::kHalf && types[0] != ElementType::kBFloat16)
    refuse(std::string("x is ") + to_string(types[0]) + ", but it must be HALF or BF16.");
  for (std::size_t index = 1; index < types.size(); ++index)
    if (const ElementType expected = input_type(attributes, index, types[0]); types[index] != expected)
      refuse(std::string(input_name(index)) + " is " + to_string(types[index]) + ", but it must be " +
             to_string(expected) + ".");
}

void check_shapes(const Attributes& attributes, const std::vector<Shape>& shapes) {
  check_count(attributes, shapes.size());
  const Shape& x = shapes[0];
  if (x.empty() || x.size() > kMaxRank)
    refuse("x has " + std::to_string(x.size()) + " axes, but it must have between 1 and 8.");
  const std::int64_t hidden = x.back();
  if (hidden < 1) refuse("x has shape " + to_string(x) + ", but its last axis must be fixed.");
  if (hidden % attributes.width_step() != 0)
    refuse("x has shape " + to_string(x) + ", but its last axis must be a multiple of " +
           (attributes.bits == 0 ? "" : "block_size ") + std::to_string(attributes.width_step()) + ".");
  for (std::size_t index = 1; index < shapes.size(); ++index)
    if (const Shape expected = expected_shape(attributes, index, hidden); !fits(shapes[index], expected))
      refuse(std::string(input_name(index)) + " has shape " + to_string(shapes[index]) + ", but it must have " +
             to_string(expected) + ".");
}

}  // namespace echovlm
