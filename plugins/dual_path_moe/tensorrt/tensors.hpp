// TensorRT's descriptions of tensors as element types and shapes; what both plugins tell TensorRT about themselves.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <vector>

#include "signature.hpp"

namespace echovlm {

constexpr char kNamespace[] = "echovlm";
constexpr std::int32_t kDone = 0, kFailed = -1;  // a callback's result

// Throws std::invalid_argument if the number of axes is impossible. A size that is an expression is -1.
Shape shape_of(const nvinfer1::Dims& dims);
Shape shape_of(const nvinfer1::DimsExprs& dims);
inline Shape shape_of(const nvinfer1::PluginTensorDesc& tensor) { return shape_of(tensor.dims); }
inline Shape shape_of(const nvinfer1::DynamicPluginTensorDesc& tensor) { return shape_of(tensor.desc); }

ElementType element_type(nvinfer1::DataType type);
inline ElementType element_type(const nvinfer1::PluginTensorDesc& tensor) { return element_type(tensor.type); }
inline ElementType element_type(const nvinfer1::DynamicPluginTensorDesc& tensor) { return element_type(tensor.desc); }

template <class Description>
std::vector<Shape> shapes_of(const Description* tensors, std::int32_t count) {
  std::vector<Shape> shapes;
  for (std::int32_t i = 0; i < count; ++i) shapes.push_back(shape_of(tensors[i]));
  return shapes;
}

template <class Description>
std::vector<ElementType> element_types(const Description* tensors, std::int32_t count) {
  std::vector<ElementType> types;
  for (std::int32_t i = 0; i < count; ++i) types.push_back(element_type(tensors[i]));
  return types;
}

// Returns the number of tokens in x [..., hidden]. Throws std::invalid_argument if an axis is dynamic or the product overflows.
std::int64_t token_count(const nvinfer1::Dims& x);

// Returns the last axis of an x that token_count has accepted.
std::int64_t last_axis(const nvinfer1::Dims& x);

}  // namespace echovlm
