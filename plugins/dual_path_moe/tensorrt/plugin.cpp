// TensorRT's callbacks: each converts its arguments, calls the operator's own code, and reports errors to TensorRT.
#include "plugin.hpp"

#include <algorithm>
#include <stdexcept>

#include "embedded_archive.hpp"
#include "log.hpp"
#include "planner.hpp"
#include "signature.hpp"

namespace echovlm {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

constexpr char kName[] = "DualPathMoE", kVersion[] = "1", kNamespace[] = "echovlm";
constexpr std::int32_t kDone = 0, kFailed = -1;
constexpr std::size_t kNoSuchWorkspace = std::size_t{1} << 62;  // more than any device has, and rounding it up does not overflow

ElementType element_type(DataType type) {
  switch (type) {
    case DataType::kHALF: return ElementType::kHalf;
    case DataType::kBF16: return ElementType::kBFloat16;
    case DataType::kFLOAT: return ElementType::kFloat;
    case DataType::kINT8: return ElementType::kInt8;
    default: return ElementType::kOther;
  }
}

std::uint32_t activation_of(DataType x) { return x == DataType::kBF16 ? kBFloat16 : kFloat16; }

Shape shape_of(const Dims& dims) {
  if (dims.nbDims < 0 || dims.nbDims > Dims::MAX_DIMS)
    throw std::invalid_argument("a tensor has " + std::to_string(dims.nbDims) + " axes.");
  return {dims.d, dims.d + dims.nbDims};
}

// -1 if the size is an expression.
Shape shape_of(const nvinfer1::DimsExprs& dims) {
  Shape shape;
  for (std::int32_t axis = 0; axis < dims.nbDims; ++axis)
    shape.push_back(dims.d[axis]->isConstant() ? dims.d[axis]->getConstantValue() : -1);
  return shape;
}

const PluginTensorDesc& described(const PluginTensorDesc& tensor) { return tensor; }
const PluginTensorDesc& described(const DynamicPluginTensorDesc& tensor) { return tensor.desc; }

template <class Description>
void check(const Attributes& attributes, const Description* inputs, std::int32_t count) {
  std::vector<ElementType> types;
  std::vector<Shape> shapes;
  for (std::int32_t i = 0; i < count; ++i) {
    types.push_back(element_type(described(inputs[i]).type));
    shapes.push_back(shape_of(described(inputs[i]).dims));
  }
  check_types(attributes, types);
  check_shapes(attributes, shapes);
}

// Returns the number of tokens in x [..., hidden]. Throws if an axis is dynamic or the product overflows.
std::int64_t token_count(const Dims& x) {
  const Shape shape = shape_of(x);
  if (shape.empty()) throw std::invalid_argument("x has 0 axes, but it must have between 1 and 8.");
  std::int64_t tokens = 1;
  for (std::size_t axis = 0; axis + 1 < shape.size(); ++axis)
    if (shape[axis] < 0 || __builtin_mul_overflow(tokens, shape[axis], &tokens))
      throw std::invalid_argument("x has shape [" + joined(shape) + "], which does not give a valid number of tokens.");
  return tokens;
}

// Returns the last axis of an x that token_count has accepted.
std::int64_t hidden_width(const Dims& x) { return x.d[x.nbDims - 1]; }

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
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&] { return std::make_unique<DualPathMoEPlugin>(*this).release(); });
}

const char* DualPathMoEPlugin::getPluginName() const noexcept { return kName; }
const char* DualPathMoEPlugin::getPluginVersion() const noexcept { return kVersion; }
const char* DualPathMoEPlugin::getPluginNamespace() const noexcept { return kNamespace; }

std::int32_t DualPathMoEPlugin::getOutputDataTypes(DataType* outputs, std::int32_t, const DataType* inputs,
                                                   std::int32_t input_count) const noexcept {
  return guarded(kFailed, [&] {
    std::vector<ElementType> types;
    std::transform(inputs, inputs + input_count, std::back_inserter(types), element_type);
    check_types(attributes_, types);
    outputs[0] = inputs[0];
    return kDone;
  });
}

std::int32_t DualPathMoEPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, std::int32_t input_count,
                                                const nvinfer1::DimsExprs*, std::int32_t, nvinfer1::DimsExprs* outputs,
                                                std::int32_t, nvinfer1::IExprBuilder&) noexcept {
  return guarded(kFailed, [&] {
    std::vector<Shape> shapes;
    for (std::int32_t i = 0; i < input_count; ++i) shapes.push_back(shape_of(inputs[i]));
    check_shapes(attributes_, shapes);
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
  return guarded(kFailed, [&] {
    check(attributes_, inputs, input_count);
    most_tokens_ = token_count(inputs[0].max);
    activation_ = activation_of(inputs[0].desc.type);
    return kDone;
  });
}

// TensorRT defines no error value here: on error, return a size that no device has, which fails the build.
std::size_t DualPathMoEPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, std::int32_t,
                                                const DynamicPluginTensorDesc*, std::int32_t) const noexcept {
  return guarded(kNoSuchWorkspace, [&] {
    const std::int64_t tokens = token_count(inputs[0].max);
    return largest_workspace(MoeShape::of(attributes_, hidden_width(inputs[0].max)), tokens);
  });
}

// A tactic is the prefill kernels' tile. Decode has only one tactic, and so has a library without kernels.
std::int32_t DualPathMoEPlugin::getNbTactics() noexcept {
  return guarded(0, [&] {
    if (most_tokens_ <= kDecodeTokens || !embedded_archive_bytes().data) return 0;
    return static_cast<std::int32_t>(prefill_tiles().size());
  });
}

std::int32_t DualPathMoEPlugin::getValidTactics(std::int32_t* tactics, std::int32_t count) noexcept {
  return guarded(kFailed, [&] {
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
  return guarded(kFailed, [&] {
    check(attributes_, inputs, input_count);
    prepare(inputs[0]);
    return kDone;
  });
}

std::int32_t DualPathMoEPlugin::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                                        const void* const* input_data, void* const* output_data, void* workspace,
                                        cudaStream_t stream) noexcept {
  return guarded(kFailed, [&] {
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
  launcher_ = std::make_unique<Launcher>(embedded_archive(), attributes_, activation_of(x.type), hidden_width(x.dims),
                                         tokens, static_cast<std::uint32_t>(tile_tokens_));
}

nvinfer1::IPluginV3* DualPathMoECreator::createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                                      nvinfer1::TensorRTPhase phase) noexcept {
  return guarded<nvinfer1::IPluginV3*>(nullptr, [&]() -> nvinfer1::IPluginV3* {
    if (!fields) throw std::invalid_argument("there are no fields.");
    return std::make_unique<DualPathMoEPlugin>(attributes_of(*fields, phase == nvinfer1::TensorRTPhase::kRUNTIME)).release();
  });
}

const char* DualPathMoECreator::getPluginName() const noexcept { return kName; }
const char* DualPathMoECreator::getPluginVersion() const noexcept { return kVersion; }
const char* DualPathMoECreator::getPluginNamespace() const noexcept { return kNamespace; }

}  // namespace echovlm
