// TensorRT's callbacks: each converts its arguments, calls the operator's own code, and reports errors to TensorRT.
#include "linear_plugin.hpp"

#include <stdexcept>

#include "embedded_archive.hpp"
#include "log.hpp"
#include "tensors.hpp"

namespace echovlm {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;

constexpr char kName[] = "BlockQuantLinear", kVersion[] = "1";

template <class Description>
void check(const LinearAttributes& attributes, const Description* inputs, std::int32_t count) {
  check_linear_types(element_types(inputs, count));
  check_linear_shapes(attributes, shapes_of(inputs, count));
}

LinearAttributes attributes_in(const PluginFieldCollection& fields, bool stored) {
  check_version(fields, stored);
  LinearAttributes attributes;
  for (std::int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    const std::string name = field.name ? field.name : "";
    if (name == "bits")
      attributes.bits = integer(field);
    else if (name == "block_size")
      attributes.block_size = integer(field);
    else if (name != "version")
      throw std::invalid_argument("there is no field '" + name + "': the fields are bits and block_size.");
  }
  attributes.validate();
  return attributes;
}

}  // namespace

LinearPlugin::LinearPlugin(const LinearAttributes& attributes)
    : attributes_(attributes),
      description_(std::string(kNamespace) + "::" + kName + "/" + kVersion + " bits=" + std::to_string(attributes.bits) +
                   ",block_size=" + std::to_string(attributes.block_size)),
      fields_{PluginField{"version", &version_, PluginFieldType::kINT32, 1},
              PluginField{"bits", &attributes_.bits, PluginFieldType::kINT32, 1},
              PluginField{"block_size", &attributes_.block_size, PluginFieldType::kINT32, 1}},
      collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

nvinfer1::IPluginCapability* LinearPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    default: return nullptr;
  }
}

// TensorRT takes ownership of the returned object.
nvinfer1::IPluginV3* LinearPlugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(kName, nullptr, [&] { return std::make_unique<LinearPlugin>(*this).release(); });
}

const char* LinearPlugin::getPluginName() const noexcept { return kName; }
const char* LinearPlugin::getPluginVersion() const noexcept { return kVersion; }
const char* LinearPlugin::getPluginNamespace() const noexcept { return kNamespace; }

std::int32_t LinearPlugin::getOutputDataTypes(DataType* outputs, std::int32_t, const DataType* inputs,
                                              std::int32_t input_count) const noexcept {
  return guarded(kName, kFailed, [&] {
    check_linear_types(element_types(inputs, input_count));
    outputs[0] = DataType::kFLOAT;
    return kDone;
  });
}

std::int32_t LinearPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                           const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                           std::int32_t, nvinfer1::IExprBuilder&) noexcept {
  return guarded(kName, kFailed, [&] {
    check_linear_shapes(attributes_, shapes_of(inputs, input_count));
    outputs[0] = inputs[0];
    outputs[0].d[inputs[0].nbDims - 1] = inputs[1].d[0];
    return kDone;
  });
}

bool LinearPlugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                             std::int32_t input_count, std::int32_t) noexcept {
  const PluginTensorDesc& tensor = tensors[position].desc;
  const ElementType wanted = position < input_count ? linear_input_type(static_cast<std::size_t>(position)) : ElementType::kFloat;
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && element_type(tensor) == wanted;
}

std::int32_t LinearPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                           const DynamicPluginTensorDesc*, std::int32_t) noexcept {
  return guarded(kName, kFailed, [&] {
    check(attributes_, inputs, input_count);
    return kDone;
  });
}

std::int32_t LinearPlugin::onShapeChange(const PluginTensorDesc* inputs, std::int32_t input_count, const PluginTensorDesc*,
                                         std::int32_t) noexcept {
  return guarded(kName, kFailed, [&] {
    check(attributes_, inputs, input_count);
    prepare(inputs);
    return kDone;
  });
}

std::int32_t LinearPlugin::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*, const void* const* input_data,
                                   void* const* output_data, void*, cudaStream_t stream) noexcept {
  return guarded(kName, kFailed, [&] {
    if (token_count(inputs[0].dims) == 0) return kDone;
    if (!launcher_) prepare(inputs);
    launcher_->launch(input_data, output_data[0], reinterpret_cast<cuda::Stream>(stream));
    return kDone;
  });
}

nvinfer1::IPluginV3* LinearPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

void LinearPlugin::prepare(const PluginTensorDesc* inputs) {
  launcher_.reset();
  const std::int64_t tokens = token_count(inputs[0].dims);
  if (tokens == 0) return;
  launcher_ = std::make_unique<LinearLauncher>(embedded_archive(), attributes_, tokens, last_axis(inputs[1].dims),
                                               shape_of(inputs[1]).front());
}

nvinfer1::IPluginV3* LinearCreator::createPlugin(const char*, const PluginFieldCollection* fields,
                                                 nvinfer1::TensorRTPhase phase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(kName, nullptr, [&]() -> nvinfer1::IPluginV3* {
    if (!fields) throw std::invalid_argument("there are no fields.");
    return std::make_unique<LinearPlugin>(attributes_in(*fields, phase == nvinfer1::TensorRTPhase::kRUNTIME)).release();
  });
}

const PluginFieldCollection* LinearCreator::getFieldNames() noexcept {
  static const std::array<PluginField, 2> fields{PluginField{"bits", nullptr, PluginFieldType::kINT32, 1},
                                                 PluginField{"block_size", nullptr, PluginFieldType::kINT32, 1}};
  static const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
  return &collection;
}

const char* LinearCreator::getPluginName() const noexcept { return kName; }
const char* LinearCreator::getPluginVersion() const noexcept { return kVersion; }
const char* LinearCreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace echovlm
