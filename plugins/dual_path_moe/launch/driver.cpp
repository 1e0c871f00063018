#include "driver.hpp"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace echovlm::cuda {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";
constexpr unsigned kSharedBytesOfAnyFunction = 48 * 1024;  // a function must opt in to use more

template <class Call>
void find(void* library, const char* name, Call& call) {
  call = reinterpret_cast<Call>(dlsym(library, name));
  if (!call) throw std::runtime_error(std::string(kLibrary) + " has no " + name + ": update the NVIDIA driver.");
}

}  // namespace

const Driver& Driver::instance() {
  static const Driver driver;  // constructed again after an attempt that threw
  return driver;
}

Driver::Driver() {
  void* const library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);  // for the life of the process
  if (!library) throw std::runtime_error(std::string("there is no NVIDIA driver here: ") + dlerror() + ".");
  find(library, "cuCtxGetCurrent", get_current_);
  find(library, "cuCtxGetId", get_id_);
  find(library, "cuCtxGetDevice", get_device_);
  find(library, "cuDeviceGetAttribute", get_attribute_);
  find(library, "cuModuleLoadData", load_data_);
  find(library, "cuModuleGetFunction", get_function_);
  find(library, "cuFuncSetAttribute", set_attribute_);
  find(library, "cuLaunchKernel", launch_kernel_);
  find(library, "cuGetErrorString", get_error_string_);
}

void Driver::check(Result result, const char* call) const {
  if (result == 0) return;
  const char* words = nullptr;
  get_error_string_(result, &words);
  throw std::runtime_error(std::string(call) + " failed: " + (words ? words : "error " + std::to_string(result)) + ".");
}

unsigned long long Driver::current_context() const {
  Context context = nullptr;
  check(get_current_(&context), "cuCtxGetCurrent");
  if (!context) throw std::runtime_error("this thread has no CUDA context.");
  unsigned long long id = 0;
  check(get_id_(context, &id), "cuCtxGetId");
  return id;
}

int Driver::device_attribute(int attribute) const {
  Device device = 0;
  check(get_device_(&device), "cuCtxGetDevice");
  int value = 0;
  check(get_attribute_(&value, attribute, device), "cuDeviceGetAttribute");
  return value;
}

Module Driver::load_module(const void* image) const {
  Module module = nullptr;
  check(load_data_(&module, image), "cuModuleLoadData");
  return module;
}

Function Driver::function(Module module, const char* name, unsigned shared_bytes) const {
  Function function = nullptr;
  check(get_function_(&function, module, name), "cuModuleGetFunction");
  if (shared_bytes > kSharedBytesOfAnyFunction)
    check(set_attribute_(function, kMaxDynamicSharedBytes, static_cast<int>(shared_bytes)), "cuFuncSetAttribute");
  return function;
}

void Driver::launch(Function function, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes,
                    Stream stream, void** parameters) const {
  check(launch_kernel_(function, grid_x, grid_y, 1, threads, 1, 1, shared_bytes, stream, parameters, nullptr),
        "cuLaunchKernel");
}

}  // namespace echovlm::cuda
