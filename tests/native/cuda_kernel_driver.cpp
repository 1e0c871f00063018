// Calls ONNX Runtime's CUDA kernel of DualPathMoE as its provider does, with ort_double.hpp in ONNX Runtime's place and
// cuda_driver_double.cpp in the driver's, for the sanitizers: exit code 1 if something is wrong.
#include "cuda_kernel.hpp"

#include <dlfcn.h>

#include <cstring>
#include <thread>

#include "checks.hpp"
#include "cuda_driver_double.hpp"
#include "ort_double.hpp"

namespace {

using namespace echovlm::ort;
using Shape = std::vector<std::int64_t>;

Checks checks;
#define EXPECT(condition) checks.expect((condition), std::to_string(__LINE__) + ": " #condition)

CudaDriverDouble& driver_double() {
  static auto* const get = reinterpret_cast<CudaDriverDouble* (*)()>(dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuda_driver_double"));
  return *get();
}

const Api& api() {
  static const ApiDouble double_;
  return double_.api();
}

void* address(std::uintptr_t value) { return reinterpret_cast<void*>(value); }

// The tensors of one operator, x [1, tokens, 192], with input i at (i + 1) * 0x1000 and y at 0x100000.
struct Tensors {
  std::vector<Value> values;

  explicit Tensors(std::int64_t tokens, int bits = 4, ElementType x = kFloat16) {
    const ElementType weight = bits == 4 ? kInt8 : x;
    const std::int64_t packing = bits == 4 ? 2 : 1;
    values = {{x, {1, tokens, 192}, nullptr}, {x, {4, 192}, nullptr}, {x, {1, 192}, nullptr}, {x, {2, 192}, nullptr},
              {x, {2}, nullptr}, {weight, {1152, 192 / packing}, nullptr}, {weight, {1152, 192 / packing}, nullptr},
              {weight, {192, 1152 / packing}, nullptr}};
    if (bits == 4)
      for (const Shape& shape : {Shape{1152, 3}, Shape{1152, 3}, Shape{192, 18}}) values.push_back({kFloat, shape, nullptr});
    for (std::size_t i = 0; i < values.size(); ++i) values[i].data = address((i + 1) * 0x1000);
  }
};

// One node of a session.
class Node {
 public:
  explicit Node(Provider& provider, int bits = 4, void (*change)(KernelInfo&) = [](KernelInfo&) {}) : provider_(provider) {
    KernelInfo info{&provider,
                    {{"group_widths", {384, 256, 128, 128, 128, 128}},
                     {"top_k", {2}},
                     {"norm_topk_prob", {1}},
                     {"bits", {bits}},
                     {"block_size", {bits ? 64 : 0}}}};
    change(info);
    said_ = sentence(op_.create_kernel_v2(&op_, &api(), &info, &kernel_));
  }
  ~Node() {
    if (kernel_) op_.destroy(kernel_);
  }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  // Computes; returns the error's message, or nothing. May be called from several threads.
  std::string run(const Tensors& tensors, void* stream = address(0x77), Shape* output = nullptr) const {
    KernelContext context{&provider_, {}, stream, {}, address(0x100000)};
    for (const Value& value : tensors.values) context.inputs.push_back(value.type == kUndefined ? nullptr : &value);
    std::string said = sentence(op_.compute_v2(kernel_, &context));
    if (output) *output = context.output.shape;
    return said;
  }

  const std::string& said() const { return said_; }  // when it was made

 private:
  static std::string sentence(Status* status) {
    const std::string message = status ? status->message : "";
    if (status) api().get<Api::ReleaseStatus>()(status);
    return message;
  }

  CustomOp op_ = cuda_dual_path_moe<kFloat16>();
  Provider& provider_;
  void* kernel_ = nullptr;
  std::string said_;
};

bool contains(const std::string& text, const char* words) { return text.find(words) != std::string::npos; }

void calls_launch_on_the_providers_stream_and_memory() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  Provider provider;
  {
    Node node(provider);
    EXPECT(node.said().empty() && provider.allocators == 1);
    for (const std::int64_t tokens : {1, 16, 17, 100, 129}) {
      driver.launches.clear();
      Shape output;
      EXPECT(node.run(Tensors(tokens), address(0x77), &output).empty());
      EXPECT((output == Shape{1, tokens, 192}));
      const bool decode = tokens <= 16, one_part = tokens > 128;
      EXPECT(driver.launches.size() == (decode || one_part ? 4 : 5) && provider.lent.empty());
      EXPECT(driver.launches[2].entry.rfind(decode ? "down_decode_80_0_" : one_part ? "gate_up_prefill_80_0_64_128_" : "gate_up_prefill_80_0_64_64_", 0) == 0);
      const LaunchSeen& first = driver.launches[0];
      EXPECT(first.stream == 0x77 && first.parameters[0] == 0x1000 && first.parameters[4] == 0x5000);
      const std::uint64_t workspace = first.parameters[5];  // starts with group_weights
      EXPECT(driver.launches.back().parameters[one_part ? 5 : 1] == 0x100000);  // y, of down_prefill or sum_parts
      for (const LaunchSeen& launch : driver.launches)
        for (const std::uint64_t value : launch.parameters)
          EXPECT(value <= 0x100000 || (value >= workspace && value < workspace + provider.last_bytes));
      const echovlm::MoeShape shape{192, 384, 256, 128, 4};
      EXPECT(provider.last_bytes <= echovlm::largest_workspace(shape, tokens));
    }
    driver.launches.clear();
    Shape output;
    EXPECT(node.run(Tensors(0), address(0x77), &output).empty() && driver.launches.empty() && (output == Shape{1, 0, 192}));
  }
  EXPECT(provider.allocators == 0);
}

void floating_weights_have_no_scales() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  Provider provider;
  Node node(provider, 0);
  Tensors tensors(3, 0);
  EXPECT(node.run(tensors).empty() && driver.launches.size() == 4);
  EXPECT(driver.launches[1].parameters[3] == 0 && driver.launches[1].parameters[4] == 0);
  tensors.values.resize(11);  // named, and absent
  EXPECT(node.run(tensors).empty() && driver.launches.size() == 8);
}

void attributes_are_refused_by_name() {
  const auto refused = [](void (*change)(KernelInfo&), const char* words) {
    Provider provider;
    const Node node(provider, 4, change);
    checks.expect(node.said().rfind("DualPathMoE: ", 0) == 0 && contains(node.said(), words), words + (": " + node.said()));
    EXPECT(provider.allocators == 0);
  };
  refused([](KernelInfo& i) { i.attributes["top_k"] = {5}; }, "top_k 5 is not between 1 and the 4 experts.");
  refused([](KernelInfo& i) { i.attributes["bits"] = {8}; }, "bits 8 is neither 0 nor 4.");
  refused([](KernelInfo& i) { i.attributes["block_size"] = {32}; }, "block_size 32 is neither 64 nor 128.");
  refused([](KernelInfo& i) { i.attributes["group_widths"] = {64, 64, std::int64_t{1} << 40}; }, "group_widths holds 1099511627776");
  refused([](KernelInfo& i) { i.attributes["top_k"] = {std::int64_t{1} << 40}; }, "top_k holds 1099511627776");
  refused([](KernelInfo& i) { i.attributes.erase("bits"); }, "attribute bits is missing");
}

void tensors_are_refused_by_name() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  Provider provider;
  Node node(provider);
  const auto refused = [&](auto change, const char* sentence) {
    Tensors tensors(3);
    change(tensors.values);
    const std::string said = node.run(tensors);
    checks.expect(said == std::string("DualPathMoE: ") + sentence, said);
  };
  using Values = std::vector<Value>;
  refused([](Values& v) { v[1].type = kFloat; }, "router is FLOAT, but it must be HALF.");
  refused([](Values& v) { v[5].type = kFloat16; }, "gate is HALF, but it must be INT8.");
  refused([](Values& v) { v[10].type = kFloat16; }, "down_scale is HALF, but it must be FLOAT.");
  refused([](Values& v) { v[7].shape = {192, 1152}; }, "down has shape [192, 1152], but it must have [192, 576].");
  refused([](Values& v) { v[0].shape = {3, 128}; }, "router has shape [4, 192], but it must have [4, 128].");
  refused([](Values& v) { v[0].shape = {3, 100}; }, "x has shape [3, 100], but its last axis must be a multiple of block_size 64.");
  refused([](Values& v) { v[0].shape = {}; }, "x has 0 axes, but it must have between 1 and 8.");
  refused([](Values& v) { v.resize(8); }, "there are 8 inputs, but with bits 4 there must be 11: x to down_scale.");
  refused([](Values& v) { v[6].data = address(0x1008); }, "up is not aligned to 16 bytes.");
  EXPECT(driver.launches.empty() && provider.lent.empty());
}

void what_fails_leaves_nothing_behind() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  Provider provider;
  Node node(provider);
  provider.exhausted = true;
  EXPECT(node.run(Tensors(2)) == "Failed to allocate memory");  // ONNX Runtime's own words
  provider.exhausted = false;
  driver.launch_result = 1;
  EXPECT(node.run(Tensors(2)) == "DualPathMoE: cuLaunchKernel failed: an error of the double.");
  EXPECT(provider.lent.empty() && driver.launches.empty());
  driver.launch_result = 0;
  driver.major = 12;
  EXPECT(contains(node.run(Tensors(3)), "on a device of compute capability 12.0 (it was built for 8.0, 8.7): rebuild it"));
  driver.major = 8;
  EXPECT(node.run(Tensors(3)).empty() && driver.launches.size() == 4);
}

// Two sessions, each called from two threads: every call's kernels are in order on its own stream, with its own tokens.
void sessions_and_threads_do_not_meet() {
  CudaDriverDouble& driver = driver_double();
  driver = {};
  constexpr int kCalls = 50;
  Provider providers[2];
  const Node nodes[2] = {Node(providers[0]), Node(providers[1])};
  std::vector<std::thread> threads;
  for (std::uintptr_t thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      const Tensors tensors(static_cast<std::int64_t>(thread + 1));
      for (int call = 0; call < kCalls; ++call) nodes[thread % 2].run(tensors, address(0x70 + thread));
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT(driver.launches.size() == 4 * 4 * kCalls && providers[0].lent.empty() && providers[1].lent.empty());
  for (std::uintptr_t thread = 0; thread < 4; ++thread) {
    std::size_t seen = 0;
    for (const LaunchSeen& launch : driver.launches) {
      if (launch.stream != 0x70 + thread) continue;
      constexpr const char* order[] = {"route_", "gate_up_decode_", "down_decode_", "sum_parts_"};
      EXPECT(launch.entry.rfind(order[seen++ % 4], 0) == 0);
      if (launch.entry.rfind("route_", 0) == 0) EXPECT(launch.grid_x == thread + 1);
    }
    EXPECT(seen == 4 * kCalls);
  }
}

}  // namespace

int main() {
  calls_launch_on_the_providers_stream_and_memory();
  floating_weights_have_no_scales();
  attributes_are_refused_by_name();
  tensors_are_refused_by_name();
  what_fails_leaves_nothing_behind();
  sessions_and_threads_do_not_meet();
  return checks.report("cuda_kernel_driver") == 0 ? 0 : 1;
}
