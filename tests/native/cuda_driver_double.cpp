// A stand-in for libcuda.so.1 on machines without a GPU: accepts the launcher's calls and records the arguments of each launch.
//
// As strict as the driver: a function that needs more shared memory than 48 KiB must have asked for it.
#include "cuda_driver_double.hpp"

#include <cstring>
#include <map>
#include <memory>
#include <mutex>

namespace {

constexpr int kInvalidValue = 1, kNotFound = 500;

struct Function {
  std::string entry;
  unsigned shared_limit = 48 * 1024;
};

struct Module {
  std::string entry;
  Function function;
};

std::map<void*, std::unique_ptr<Module>> modules;
std::mutex launching;

}  // namespace

extern "C" {

CudaDriverDouble* cuda_driver_double() {
  static CudaDriverDouble seen;
  return &seen;
}

void cuda_driver_double_on_launch(decltype(CudaDriverDouble::on_launch) called) { cuda_driver_double()->on_launch = called; }

int cuCtxGetCurrent(void** context) {
  *context = reinterpret_cast<void*>(static_cast<std::uintptr_t>(cuda_driver_double()->context));
  return 0;
}

int cuCtxGetId(void* context, unsigned long long* id) {
  *id = reinterpret_cast<std::uintptr_t>(context);
  return 0;
}

int cuCtxGetDevice(int* device) {
  *device = 0;
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int) {
  const CudaDriverDouble& it = *cuda_driver_double();
  switch (attribute) {
    case 16: *value = it.multiprocessors; return 0;
    case 75: *value = it.major; return 0;
    case 76: *value = it.minor; return 0;
    default: return kInvalidValue;
  }
}

int cuModuleLoadData(void** module, const void* image) {
  if (const int result = cuda_driver_double()->load_result) return result;
  ++cuda_driver_double()->modules_loaded;
  auto made = std::make_unique<Module>(Module{static_cast<const char*>(image), {}});
  *module = made.get();
  modules[made.get()] = std::move(made);
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  Module& it = *static_cast<Module*>(module);
  if (it.entry != name) return kNotFound;
  it.function.entry = name;
  *function = &it.function;
  return 0;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8) return kInvalidValue;
  static_cast<Function*>(function)->shared_limit = static_cast<unsigned>(value);
  return 0;
}

int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned threads, unsigned threads_y,
                   unsigned threads_z, unsigned shared_bytes, void* stream, void** parameters, void** extra) {
  const Function& it = *static_cast<Function*>(function);
  if (extra || threads_y != 1 || threads_z != 1 || grid_x == 0 || grid_y == 0 || shared_bytes > it.shared_limit)
    return kInvalidValue;
  if (const int result = cuda_driver_double()->launch_result) return result;
  LaunchSeen seen{it.entry, grid_x, grid_y, grid_z, threads, shared_bytes, reinterpret_cast<std::uintptr_t>(stream), {}};
  const std::string kinds = it.entry.substr(it.entry.rfind('_') + 1);
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    std::uint64_t value = 0;
    std::memcpy(&value, parameters[i], kinds[i] == 'p' ? 8 : 4);
    seen.parameters.push_back(value);
  }
  const std::lock_guard lock(launching);
  if (const auto called = cuda_driver_double()->on_launch) {
    const unsigned grid[] = {grid_x, grid_y};
    called(seen.entry.c_str(), grid, seen.stream, seen.parameters.data());
  }
  cuda_driver_double()->launches.push_back(seen);
  return 0;
}

int cuGetErrorString(int, const char** words) {
  *words = "an error of the double";
  return 0;
}
}
