// TensorRT's callbacks: each converts its arguments, calls the operator's own code, and reports errors to TensorRT.
#include "plugin.hpp"

#include <algorithm>
#include <stdexcept>

#include "embedded_archive.hpp"
#include "log.hpp"
#include "planner.hpp"
#include "signature.hpp"
#include "tensors.hpp"

namespace echovlm {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr char kName[] = "DualPathMoE", kVersion[] = "1";
constexpr std::size_t kNoSuchWorkspace = std::size_t{1} << 62;  // more than any device has, and rounding it up does not overflow

std::uint32_t activation_of(DataType x) { return x == DataType::kBF16 ? kBFloat16 : kFloat16; }

template <class Description>
void check(const Attributes& attributes, const Description* inputs, std::int32_t count) {
  check_types(attributes, element_types(inputs, count));
  check_shapes(attributes, shapes_of(inputs, count));
}

}  // namespace

DualPathMoEPlugin::DualPathMoEPlugin(Attributes attributes)
    : attributes_(std::move(attributes)),
      description_(std::string(kNamespace) + "::" + kName + "/" + kVersion + " " + to_string(attributes_)),
      stored_(attributes_) {}

DualPathMoEPlugin::DualPathMoEPlugin(const DualPathMoEPlugin& other)
    : DualPathMoEPlugin(other.attributes_) {
  tile_tokens_ = other.tile_tokens_;
  most_tokens_ = other.most_tokens_;
  activation_ = other.activation_;
}

nvinfer1::IPluginCapability* DualPathMoEPlugin::getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    default: return nullptr;
  }
}

// TensorRT takes ownership of the returned object.
nvinfer1::IPluginV3* DualPathMoEPlugin::clone() noexcept {
  return guarded<nvinfer1::IPluginV3*>(kName, nullptr, [&] { return std::make_unique<DualPathMoEPlugin>(*this).release(); });
}

const char* DualPathMoEPlugin::getPluginName() const noexcept { return kName; }
const char* DualPathMoEPlugin::getPluginVersion() const noexcept { return kVersion; }
const char* DualPathMoEPlugin::getPluginNamespace() const noexcept { return kNamespace; }

std::int32_t DualPathMoEPlugin::getOutputDataTypes(DataType* outputs, std::int32_t, const DataType* inputs,
                                                   std::int32_t input_count) const noexcept {
  return guarded(kName, kFailed, [&] {
    check_types(attributes_, element_types(inputs, input_count));
    outputs[0] = inputs[0];
    return kDone;
  });
}

std::int32_t DualPathMoEPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                                const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                                std::int32_t, nvinfer1::IExprBuilder&) noexcept {
  return guarded(kName, kFailed, [&] {
    check_shapes(attributes_, shapes_of(inputs, input_count));
    outputs[0] = inputs[0];
    return kDone;
  });
}

bool DualPathMoEPlugin::supportsFormatCombination(std::int32_t position, const DynamicPluginTensorDesc* tensors,
                                                  std::int32_t input_count, std::int32_t) noexcept {
  const PluginTensorDesc& tensor = tensors[position].desc;
  const ElementType type = element_type(tensor.type), x = element_type(tensors[0].desc.type);
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  if (position == 0) return x == ElementType::kHalf || x == ElementType::kBFloat16;
  return type == (position < input_count ? input_type(attributes_, static_cast<std::size_t>(position), x) : x);
}

std::int32_t DualPathMoEPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, std::int32_t input_count,
                                                const DynamicPluginTensorDesc*, std::int32_t) noexcept {
  return guarded(kName, kFailed, [&] {
    check(attributes_, inputs, input_count);
    most_tokens_ = token_count(inputs[0].max);
    activation_ = activation_of(inputs[0].desc.type);
    return kDone;
  });
}

// TensorRT defines no error value here: on error, return a size that no device has, which fails the build.
std::size_t DualPathMoEPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t,
                                                const DynamicPluginTensorDesc*, std::int32_t) const noexcept {
  return guarded(kName, kNoSuchWorkspace, [&] {
    const std::int64_t tokens = token_count(inputs[0].max);
    return largest_workspace(MoeShape::of(attributes_, last_axis(inputs[0].max)), tokens);
  });
}

// A tactic is the prefill kernels' tile. Decode has only one tactic, and so has a library without kernels.
std::int32_t DualPathMoEPlugin::getNbTactics() noexcept {
  return guarded(kName, 0, [&] {
    if (most_tokens_ <= kDecodeTokens || !embedded_archive_bytes().data) return 0;
    return static_cast<std::int32_t>(prefill_tiles().size());
  });
}

std::int32_t DualPathMoEPlugin::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept {
  return guarded(kName, kFailed, [&] {
    const std::vector<std::uint32_t> tiles = prefill_tiles();
    std::copy_n(tiles.begin(), std::min(static_cast<std::size_t>(count), tiles.size()), tactics);
    return kDone;
  });
}

// Layers of one shape share their timings.
const char* DualPathMoEPlugin::getTimingCacheID() noexcept { return description_.c_str(); }
const char* DualPathMoEPlugin::getMetadataString() noexcept { return description_.c_str(); }

std::int32_t DualPathMoEPlugin::setTactic(std::int32_t tactic) noexcept {
  tile_tokens_ = tactic;
  launcher_.reset();
  return kDone;
}

std::int32_t DualPathMoEPlugin::onShapeChange(const PluginTensorDesc* inputs, std::int32_t input_count,
                                              const PluginTensorDesc*, std::int32_t) noexcept {
  return guarded(kName, kFailed, [&] {
    check(attributes_, inputs, input_count);
    prepare(inputs[0]);
    return kDone;
  });
}

std::int32_t DualPathMoEPlugin::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                                        const void* const* input_data, void* const* output_data, void* workspace,
                                        cudaStream_t stream) noexcept {
  return guarded(kName, kFailed, [&] {
    if (token_count(inputs[0].dims) == 0) return kDone;
    if (!launcher_) prepare(inputs[0]);
    CallBuffers buffers;
    std::copy_n(input_data, input_count(attributes_), buffers.inputs.begin());
    buffers.y = output_data[0];
    buffers.workspace = workspace;
    launcher_->launch(buffers, reinterpret_cast<cuda::Stream>(stream));
    return kDone;
  });
}

nvinfer1::IPluginV3* DualPathMoEPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept { return clone(); }

const nvinfer1::PluginFieldCollection* DualPathMoEPlugin::getFieldsToSerialize() noexcept { return &stored_.collection(); }

std::vector<std::uint32_t> DualPathMoEPlugin::prefill_tiles() const {
  return embedded_archive().prefill_tiles({activation_, static_cast<std::uint32_t>(attributes_.bits),
                                           static_cast<std::uint32_t>(attributes_.block_size),
                                           static_cast<std::uint32_t>(attributes_.experts())});
}

void DualPathMoEPlugin::prepare(const PluginTensorDesc& x) {
  launcher_.reset();
  const std::int64_t tokens = token_count(x.dims);
  if (tokens == 0) return;
  launcher_ = std::make_unique<Launcher>(embedded_archive(), attributes_, activation_of(x.type), last_axis(x.dims),
                                         tokens, static_cast<std::uint32_t>(tile_tokens_));
}

nvinfer1::IPluginV3* DualPathMoECreator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                                      nvinfer1::TensorRTPhase phase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(kName, nullptr, [&]() -> nvinfer1::IPluginV3* {
    if (!fields) throw std::invalid_argument("there are no fields.");
    return std::make_unique<DualPathMoEPlugin>(attributes_of(*fields, phase == nvinfer1::TensorRTPhase::kRUNTIME)).release();
  });
}

const char* DualPathMoECreator::getPluginName() const noexcept { return kName; }
const char* DualPathMoECreator::getPluginVersion() const noexcept { return kVersion; }
const char* DualPathMoECreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace echovlm
