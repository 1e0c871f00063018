// Calls the plugin's callbacks as TensorRT does: creation, clones, stored fields, formats, workspace, tactics, launches.
#include <NvInferRuntime.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "c_launch.hpp"
#include "exports.hpp"
#include "plugin_driver.hpp"

namespace {

using namespace nvinfer1;

std::string logged;

class KeepingLogger final : public ILogger {
  void log(Severity, const char* message) noexcept override { logged = message; }
};

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &logger_; }

 private:
  KeepingLogger logger_;
};

struct Fields {
  std::vector<std::int32_t> widths{384, 256, 128, 128, 128, 128};
  std::int32_t top_k = 2, bits = 4, block = 64, version = 1;
  std::int64_t wide_norm = 1;
  std::vector<PluginField> fields;
  PluginFieldCollection collection{};

  const PluginFieldCollection* get() {
    fields = {{"group_widths", widths.data(), PluginFieldType::kINT32, static_cast<std::int32_t>(widths.size())},
              {"top_k", &top_k, PluginFieldType::kINT32, 1},
              {"norm_topk_prob", &wide_norm, PluginFieldType::kINT64, 1},
              {"bits", &bits, PluginFieldType::kINT32, 1},
              {"block_size", &block, PluginFieldType::kINT32, 1}};
    collection = {static_cast<std::int32_t>(fields.size()), fields.data()};
    return &collection;
  }
};

using Plugin = std::unique_ptr<IPluginV3>;

Plugin create(const PluginFieldCollection* fields, TensorRTPhase phase = TensorRTPhase::kBUILD) {
  std::int32_t count = 0;
  auto* const creator = static_cast<IPluginCreatorV3One*>(getCreators(count)[0]);
  return Plugin(creator->createPlugin("moe", fields, phase));
}

IPluginV3OneBuild& build_of(const Plugin& plugin) {
  return *static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}

IPluginV3OneRuntime& runtime_of(const Plugin& plugin) {
  return *static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::string stored(const Plugin& plugin) {
  const PluginFieldCollection& fields = *runtime_of(plugin).getFieldsToSerialize();
  std::string text;
  for (std::int32_t i = 0; i < fields.nbFields; ++i) {
    text += std::string(fields.fields[i].name) + "=";
    for (std::int32_t n = 0; n < fields.fields[i].length; ++n)
      text += std::to_string(static_cast<const std::int32_t*>(fields.fields[i].data)[n]) + " ";
  }
  return text;
}

void fields_round_trip() {
  Fields fields;
  Plugin plugin = create(fields.get());
  EXPECT(plugin != nullptr);
  const std::string text = stored(plugin);
  EXPECT(text == "version=1 group_widths=384 256 128 128 128 128 top_k=2 norm_topk_prob=1 bits=4 block_size=64 ");
  Plugin clone(plugin->clone());
  const Plugin again = create(runtime_of(plugin).getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
  plugin.reset();  // a clone owns what it points to
  EXPECT(stored(clone) == text && again && stored(again) == text);
}

void fields_are_refused() {
  const auto refused = [](auto change, const char* words, TensorRTPhase phase = TensorRTPhase::kBUILD) {
    Fields fields;
    fields.get();
    change(fields);
    logged.clear();
    EXPECT(create(&fields.collection, phase) == nullptr);
    if (logged.find(words) == std::string::npos) expect(false, logged.c_str(), __LINE__);
  };
  refused([](Fields& f) { f.top_k = 7; }, "DualPathMoE: top_k 7 is not between");
  refused([](Fields& f) { f.fields[1].type = PluginFieldType::kFLOAT32; }, "top_k is not of integers");
  refused([](Fields& f) { f.fields[1].length = 2, f.fields[1].data = f.widths.data(); }, "top_k has 2 values");
  refused([](Fields& f) { f.fields[0].data = nullptr; }, "group_widths has no values");
  refused([](Fields& f) { f.wide_norm = std::int64_t{1} << 40; }, "norm_topk_prob holds 1099511627776");
  refused([](Fields& f) { f.fields[4].name = "blocksize"; }, "there is no field 'blocksize'");
  refused([](Fields& f) { f.collection.nbFields = 1; }, "top_k 0 is not between");
  refused([](Fields&) {}, "stores no version", TensorRTPhase::kRUNTIME);
  refused(
      [](Fields& f) {
        f.version = 2;
        f.fields[4] = {"version", &f.version, PluginFieldType::kINT32, 1};
        f.fields[3].name = "a_field_of_version_2";
      },
      "stores version 2 of this plugin, and this library knows versions up to 1", TensorRTPhase::kRUNTIME);
  logged.clear();
  EXPECT(create(nullptr) == nullptr && logged.find("no fields") != std::string::npos);
}

// The tensors of Fields' operator with x [1, tokens, 192].
std::vector<PluginTensorDesc> tensors(std::int64_t tokens) {
  const auto tensor = [](DataType type, std::vector<std::int64_t> dims) {
    PluginTensorDesc made{};
    made.type = type;
    made.format = TensorFormat::kLINEAR;
    made.dims.nbDims = static_cast<std::int32_t>(dims.size());
    for (std::size_t i = 0; i < dims.size(); ++i) made.dims.d[i] = dims[i];
    return made;
  };
  const DataType half = DataType::kHALF, packed = DataType::kINT8, scale = DataType::kFLOAT;
  return {tensor(half, {1, tokens, 192}), tensor(half, {4, 192}),     tensor(half, {1, 192}),   tensor(half, {2, 192}),
          tensor(half, {2}),              tensor(packed, {1152, 96}), tensor(packed, {1152, 96}), tensor(packed, {192, 576}),
          tensor(scale, {1152, 3}),       tensor(scale, {1152, 3}),   tensor(scale, {192, 18}),   tensor(half, {1, tokens, 192})};
}

std::vector<DynamicPluginTensorDesc> dynamic(std::int64_t most) {
  std::vector<DynamicPluginTensorDesc> made;
  for (const PluginTensorDesc& tensor : tensors(most)) made.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
  made.front().desc.dims.d[1] = -1;
  return made;
}

void only_linear_formats_of_the_right_type_are_supported() {
  Fields fields;
  const Plugin plugin = create(fields.get());
  IPluginV3OneBuild& build = build_of(plugin);
  for (std::int32_t position = 0; position < 12; ++position) {
    std::vector<DynamicPluginTensorDesc> inputs = dynamic(8);
    EXPECT(build.supportsFormatCombination(position, inputs.data(), 11, 1));
    inputs[static_cast<std::size_t>(position)].desc.format = TensorFormat::kCHW4;
    EXPECT(!build.supportsFormatCombination(position, inputs.data(), 11, 1));
    inputs = dynamic(8);
    inputs[static_cast<std::size_t>(position)].desc.type = DataType::kINT32;
    EXPECT(!build.supportsFormatCombination(position, inputs.data(), 11, 1));
  }
}

void tactics_and_workspace_follow_the_profile() {
  Fields fields;
  const Plugin plugin = create(fields.get());
  IPluginV3OneBuild& build = build_of(plugin);
  const auto configure = [&](std::int64_t most) {
    const std::vector<DynamicPluginTensorDesc> inputs = dynamic(most);
    EXPECT(build.configurePlugin(inputs.data(), 11, &inputs[11], 1) == 0);
    return build.getWorkspaceSize(inputs.data(), 11, &inputs[11], 1);
  };
  const std::size_t decode = configure(1);
  EXPECT(build.getNbTactics() == 0);
  const std::size_t prefill = configure(512);
  EXPECT(build.getNbTactics() == 2 && prefill > decode);
  std::int32_t tactics[2] = {};
  EXPECT(build.getValidTactics(tactics, 2) == 0 && tactics[0] == 64 && tactics[1] == 128);
  EchovlmPlanRequest request{512, 192, 384, 256, 128, 4, 0, 0, 0, 0, 0, 0};
  EXPECT(static_cast<std::int64_t>(prefill) == echovlm_largest_workspace(&request));

  std::vector<DynamicPluginTensorDesc> wrong = dynamic(8);
  wrong[7].desc.dims.d[1] = 1152;
  EXPECT(build.configurePlugin(wrong.data(), 11, &wrong[11], 1) != 0);
  EXPECT(logged == "DualPathMoE: down has shape [192, 1152], but it must have [192, 576].");
}

// Whatever the dimensions are, the callback returns, with a size that no device has and a sentence.
void absurd_dimensions_are_refused() {
  Fields fields;
  const Plugin plugin = create(fields.get());
  IPluginV3OneBuild& build = build_of(plugin);
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const auto refused = [&](std::vector<std::int64_t> x, const char* words) {
    std::vector<DynamicPluginTensorDesc> inputs = dynamic(8);
    Dims& dims = inputs[0].max;
    dims.nbDims = static_cast<std::int32_t>(x.size());
    std::copy(x.begin(), x.end(), dims.d);
    inputs[0].desc.dims = dims;
    logged.clear();
    EXPECT(build.getWorkspaceSize(inputs.data(), 11, &inputs[11], 1) >= std::size_t{1} << 60);
    if (logged.find(words) == std::string::npos) expect(false, logged.c_str(), __LINE__);
    EXPECT(build.configurePlugin(inputs.data(), 11, &inputs[11], 1) != 0 || build.getNbTactics() >= 0);
    std::vector<PluginTensorDesc> described = tensors(1);
    described[0].dims = dims;
    EXPECT(runtime_of(plugin).onShapeChange(described.data(), 11, &described[11], 1) != 0);
    EXPECT(runtime_of(plugin).enqueue(described.data(), &described[11], nullptr, nullptr, nullptr, nullptr) != 0);
  };
  refused({std::int64_t{1} << 32, std::int64_t{1} << 32, 192}, "DualPathMoE: x has shape [4294967296, 4294967296, 192], which");
  refused({1, most, 192}, "larger than any memory");
  refused({1, most / 2304, 192}, "larger than any memory");
  refused({1, -1, 192}, "DualPathMoE: x has shape [1, -1, 192], which");
  refused({}, "DualPathMoE: x has 0 axes");
}

Plugin create_linear(std::int32_t bits, TensorRTPhase phase, std::int32_t version) {
  static std::int32_t block = 64, held_bits, held_version;
  held_bits = bits, held_version = version;
  const std::vector<PluginField> fields{{"bits", &held_bits, PluginFieldType::kINT32, 1},
                                        {"block_size", &block, PluginFieldType::kINT32, 1},
                                        {"version", &held_version, PluginFieldType::kINT32, 1}};
  const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
  std::int32_t count = 0;
  auto* const creator = static_cast<IPluginCreatorV3One*>(getCreators(count)[1]);
  EXPECT(count == 2 && std::string(creator->getPluginName()) == "BlockQuantLinear");
  return Plugin(creator->createPlugin("head", &collection, phase));
}

void one_product_is_a_plugin() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  driver.context = 11;
  logged.clear();
  EXPECT(create_linear(4, TensorRTPhase::kBUILD, 1) == nullptr && logged == "BlockQuantLinear: bits 4 is not 8.");
  EXPECT(create_linear(8, TensorRTPhase::kRUNTIME, 2) == nullptr && logged.find("stores version 2") != std::string::npos);
  Plugin built = create_linear(8, TensorRTPhase::kBUILD, 1);
  Plugin plugin(runtime_of(built).attachToContext(nullptr));
  built.reset();  // a clone owns what it points to
  EXPECT(stored(plugin) == "version=1 bits=8 block_size=64 ");

  const auto described = [](std::int64_t tokens) {
    std::vector<PluginTensorDesc> made(4);
    const auto set = [&](std::size_t i, DataType type, std::int64_t rows, std::int64_t columns) {
      made[i].type = type;
      made[i].format = TensorFormat::kLINEAR;
      made[i].dims = {2, {rows, columns}};
    };
    set(0, DataType::kFLOAT, tokens, 192);
    set(1, DataType::kINT8, 1000, 192);
    set(2, DataType::kFLOAT, 1000, 3);
    set(3, DataType::kFLOAT, tokens, 1000);
    return made;
  };
  IPluginV3OneBuild& build = build_of(plugin);
  std::vector<DynamicPluginTensorDesc> tensors;
  for (const PluginTensorDesc& tensor : described(8)) tensors.push_back({tensor, tensor.dims, tensor.dims, tensor.dims});
  EXPECT(build.configurePlugin(tensors.data(), 3, &tensors[3], 1) == 0);
  for (std::int32_t position = 0; position < 4; ++position) {
    EXPECT(build.supportsFormatCombination(position, tensors.data(), 3, 1));
    tensors[static_cast<std::size_t>(position)].desc.type = DataType::kHALF;
    EXPECT(!build.supportsFormatCombination(position, tensors.data(), 3, 1));
  }
  EXPECT(build.configurePlugin(tensors.data(), 3, &tensors[3], 1) != 0 && logged == "BlockQuantLinear: x is HALF, but it must be FLOAT.");

  IPluginV3OneRuntime& runtime = runtime_of(plugin);
  const void* inputs[] = {reinterpret_cast<const void*>(0x1000), reinterpret_cast<const void*>(0x2000), reinterpret_cast<const void*>(0x3000)};
  void* outputs[] = {reinterpret_cast<void*>(0x4000)};
  const auto call = [&](std::int64_t tokens) {
    driver.launches.clear();
    const std::vector<PluginTensorDesc> shapes = described(tokens);
    EXPECT(runtime.onShapeChange(shapes.data(), 3, &shapes[3], 1) == 0);
    EXPECT(runtime.enqueue(shapes.data(), &shapes[3], inputs, outputs, nullptr, nullptr) == 0);
    return driver.launches.size();
  };
  EXPECT(call(64) == 1 && driver.launches[0].grid_x == 4 && driver.launches[0].grid_y == 32);
  EXPECT(call(0) == 0);
  EXPECT(call(1) == 1 && driver.launches[0].grid_x == 1);
}

// Nothing leaves a callback, not even while it is being reported.
void a_failing_logger_changes_nothing() {
  class Failing final : public ILoggerFinder {
    ILogger* findLogger() override { throw 7; }
  };
  static Failing failing;
  setLoggerFinder(&failing);
  EXPECT(create(nullptr) == nullptr);
}

void enqueue_launches() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  driver.context = 10;
  Fields fields;
  const Plugin built = create(fields.get());
  EXPECT(runtime_of(built).setTactic(128) == 0);
  const Plugin plugin(runtime_of(built).attachToContext(nullptr));
  IPluginV3OneRuntime& runtime = runtime_of(plugin);
  const void* inputs[11];
  for (std::size_t i = 0; i < 11; ++i) inputs[i] = reinterpret_cast<const void*>((i + 1) * 0x1000);
  void* outputs[1] = {reinterpret_cast<void*>(0x100000)};
  const auto call = [&](std::int64_t tokens) {
    driver.launches.clear();
    const std::vector<PluginTensorDesc> described = tensors(tokens);
    EXPECT(runtime.onShapeChange(described.data(), 11, &described[11], 1) == 0);
    EXPECT(runtime.enqueue(described.data(), &described[11], inputs, outputs, reinterpret_cast<void*>(0x10000000), nullptr) == 0);
    return driver.launches.size();
  };
  EXPECT(call(1) == 4 && driver.launches[3].entry.rfind("sum_parts_80_", 0) == 0);
  EXPECT(call(17) == 5 && call(129) == 4 && driver.launches[2].entry.rfind("gate_up_prefill_80_0_64_128_", 0) == 0);
  EXPECT(call(0) == 0);

  driver.major = 5;
  const std::vector<PluginTensorDesc> described = tensors(4);
  EXPECT(runtime.onShapeChange(described.data(), 11, &described[11], 1) != 0);
  EXPECT(logged.find("compute capability 5.0 (it was built for 8.0, 8.7)") != std::string::npos);
}

}  // namespace

void plugin_callbacks() {
  static Finder finder;
  setLoggerFinder(&finder);
  fields_round_trip();
  fields_are_refused();
  only_linear_formats_of_the_right_type_are_supported();
  tactics_and_workspace_follow_the_profile();
  absurd_dimensions_are_refused();
  enqueue_launches();
  one_product_is_a_plugin();
  a_failing_logger_changes_nothing();
}
