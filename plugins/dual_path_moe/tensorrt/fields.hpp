// Attributes from TensorRT's plugin fields, and into those that an engine stores.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <cstdint>

#include "attributes.hpp"

namespace echovlm {

// The version of the fields that an engine stores. A field whose meaning changes, or one that older libraries must not
// overlook, raises it.
constexpr std::int32_t kFieldsVersion = 1;

// The fields by name, type and length as the ONNX parser wants to know them.
const nvinfer1::PluginFieldCollection& declared_fields();

// Throws std::invalid_argument, with a sentence that names the field. `stored`: they come from an engine, so `version` must be there.
Attributes attributes_of(const nvinfer1::PluginFieldCollection& fields, bool stored);

// The fields of one plugin for its engine. They point into this object, which therefore stays where it is.
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
