// Converts TensorRT's plugin fields to DualPathMoE's attributes, and those to the fields that an engine stores.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <vector>

#include "attributes.hpp"

namespace echovlm {

// The version of the fields that an engine stores. Increase it when a field changes its meaning, or when a new field must not be
// ignored by older libraries.
constexpr std::int32_t kFieldsVersion = 1;

// Return a field's integers, or its one integer, of either width. Throw std::invalid_argument with a message that names the field.
std::vector<std::int32_t> integers(const nvinfer1::PluginField& field);
std::int32_t integer(const nvinfer1::PluginField& field);

// Refuses, by std::invalid_argument, fields of a later version before an unknown field is. `stored`: the fields are from an engine, so
// they need `version`.
void check_version(const nvinfer1::PluginFieldCollection& fields, bool stored);

// The fields' names, types and lengths, as the ONNX parser needs them.
const nvinfer1::PluginFieldCollection& declared_fields();

// Throws std::invalid_argument with a message that names the field; `stored` as above.
Attributes attributes_of(const nvinfer1::PluginFieldCollection& fields, bool stored);

// The fields of one plugin for its engine. They point into this object, so it must not be copied or moved.
class StoredFields {
 public:
  explicit StoredFields(const Attributes& attributes);
  StoredFields(const StoredFields&) = delete;
  StoredFields& operator=(const StoredFields&) = delete;

  const nvinfer1::PluginFieldCollection& collection() const { return collection_; }

 private:
  Attributes attributes_;
  std::int32_t version_ = kFieldsVersion;
  std::array<nvinfer1::PluginField, 6> fields_;
  nvinfer1::PluginFieldCollection collection_;
};

}  // namespace echovlm
