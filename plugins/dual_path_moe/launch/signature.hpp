// Checks DualPathMoE's inputs against README.md's table; errors name the input.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attributes.hpp"

namespace echovlm {

enum class ElementType { kHalf, kBFloat16, kFloat, kInt8, kOther };

using Shape = std::vector<std::int64_t>;  // -1 if a size is not known yet

constexpr std::size_t kMaxInputs = 11, kMaxRank = 8;

// Returns the number of inputs: there are no scales if weights are floating-point.
std::size_t input_count(const Attributes& attributes);

// Returns the name of input `index` in README.md's table.
const char* input_name(std::size_t index);

const char* to_string(ElementType type);

// Returns the type of input `index` if x has type `x`.
ElementType input_type(const Attributes& attributes, std::size_t index, ElementType x);

// Both throw std::invalid_argument. x's last axis must be known; other sizes may be -1, and are then not checked.
void check_types(const Attributes& attributes, const std::vector<ElementType>& types);
void check_shapes(const Attributes& attributes, const std::vector<Shape>& shapes);

}  // namespace echovlm
