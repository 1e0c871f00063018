// What DualPathMoE's inputs must be: README.md's table as a check that names the input.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attributes.hpp"

namespace echovlm {

enum class ElementType { kHalf, kBFloat16, kFloat, kInt8, kOther };

using Shape = std::vector<std::int64_t>;  // -1 if a size is not known yet

constexpr std::size_t kMaxInputs = 11, kMaxRank = 8;

// How many inputs the operator has: the scales are absent if weights are floating.
std::size_t input_count(const Attributes& attributes);

// The name of input `index` in README.md's table.
const char* input_name(std::size_t index);

const char* to_string(ElementType type);

// The type of input `index` where x has type `x`.
ElementType input_type(const Attributes& attributes, std::size_t index, ElementType x);

// Both throw std::invalid_argument. Shapes need x's last axis; other sizes may be -1, and are then taken as they are.
void check_types(const Attributes& attributes, const std::vector<ElementType>& types);
void check_shapes(const Attributes& attributes, const std::vector<Shape>& shapes);

}  // namespace echovlm
