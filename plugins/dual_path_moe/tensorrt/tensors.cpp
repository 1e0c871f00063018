#include "tensors.hpp"

#include <stdexcept>
#include <string>

namespace echovlm {

using nvinfer1::DataType;
using nvinfer1::Dims;

Shape shape_of(const Dims& dims) {
  if (dims.nbDims < 0 || dims.nbDims > Dims::MAX_DIMS)
    throw std::invalid_argument("a tensor has " + std::to_string(dims.nbDims) + " axes.");
  return {dims.d, dims.d + dims.nbDims};
}

Shape shape_of(const nvinfer1::DimsExprs& dims) {
  Shape shape;
  for (std::int32_t axis = 0; axis < dims.nbDims; ++axis)
    shape.push_back(dims.d[axis]->isConstant() ? dims.d[axis]->getConstantValue() : -1);
  return shape;
}

ElementType element_type(DataType type) {
  switch (type) {
    case DataType::kHALF: return ElementType::kHalf;
    case DataType::kBF16: return ElementType::kBFloat16;
    case DataType::kFLOAT: return ElementType::kFloat;
    case DataType::kINT8: return ElementType::kInt8;
    default: return ElementType::kOther;
  }
}

std::int64_t token_count(const Dims& x) {
  const Shape shape = shape_of(x);
  if (shape.empty()) throw std::invalid_argument("x has 0 axes, but it must have between 1 and 8.");
  std::int64_t tokens = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis)
    if (shape[axis] < 0 || __builtin_mul_overflow(tokens, shape[axis], &tokens))
      throw std::invalid_argument("x has shape [" + joined(shape) + "], which does not give a valid number of tokens.");
  return tokens;
}

std::int64_t last_axis(const Dims& x) { return x.d[x.nbDims - 1]; }

}  // namespace echovlm
