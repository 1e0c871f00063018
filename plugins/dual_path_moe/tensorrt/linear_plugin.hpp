// The TensorRT plugin echovlm::BlockQuantLinear, version 1 (README.md), and its creator for TensorRT's plugin registry.
#pragma once

#include <NvInferRuntime.h>

#include <array>
#include <memory>
#include <string>

#include "fields.hpp"
#include "linear_launcher.hpp"

namespace echovlm {

class LinearPlugin final : public nvinfer1::IPluginV3,
                           public nvinfer1::IPluginV3OneCore,
                           public nvinfer1::IPluginV3OneBuild,
                           public nvinfer1::IPluginV3OneRuntime {
 public:
  // The attributes must be validated.
  explicit LinearPlugin(const LinearAttributes& attributes);
  // A clone looks up its kernel again, because it may run in another context.
  LinearPlugin(const LinearPlugin& other) : LinearPlugin(other.attributes_) {}

  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;

  std::int32_t getNbOutputs() const noexcept override { return 1; }
  std::int32_t getOutputDataTypes(nvinfer1::DataType* outputs, std::int32_t output_count, const nvinfer1::DataType* inputs,
                                  std::int32_t input_count) const noexcept override;
  std::int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count, const nvinfer1::DimsExprs* shapes,
                               std::int32_t shape_count, nvinfer1::DimsExprs* outputs, std::int32_t output_count,
                               nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(std::int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 std::int32_t input_count, std::int32_t output_count) noexcept override;
  std::int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                               const nvinfer1::DynamicPluginTensorDesc* outputs, std::int32_t output_count) noexcept override;
  const char* getTimingCacheID() noexcept override { return description_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }

  std::int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, std::int32_t input_count,
                             const nvinfer1::PluginTensorDesc* outputs, std::int32_t output_count) noexcept override;
  std::int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs, const nvinfer1::PluginTensorDesc* outputs,
                       const void* const* input_data, void* const* output_data, void* workspace,
                       cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override { return &collection_; }

 private:
  void prepare(const nvinfer1::PluginTensorDesc* inputs);

  LinearAttributes attributes_;
  std::int32_t version_ = kFieldsVersion;
  std::string description_;
  std::array<nvinfer1::PluginField, 3> fields_;  // point into this object
  nvinfer1::PluginFieldCollection collection_;
  std::unique_ptr<LinearLauncher> launcher_;  // for the shapes of the last onShapeChange; none for no tokens
};

class LinearCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  nvinfer1::IPluginV3* createPlugin(const char* name, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override;
  const char* getPluginName() const noexcept override;
  const char* getPluginVersion() const noexcept override;
  const char* getPluginNamespace() const noexcept override;
};

}  // namespace echovlm
