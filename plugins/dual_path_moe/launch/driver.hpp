// The functions of CUDA's driver API that launch kernels. libcuda.so.1 is opened at the first use.
//
// The types and numbers below are part of the driver's stable ABI, so that neither CUDA's headers nor its libraries are needed to
// build or to load this library. If cuda.h is found, the build checks each (driver_check.cpp).
#pragma once

#include <cstddef>

namespace echovlm::cuda {

using Result = int;  // CUresult: 0 is success
using Device = int;  // CUdevice
struct ContextState;
struct ModuleState;
struct FunctionState;
struct StreamState;
using Context = ContextState*;    // CUcontext
using Module = ModuleState*;      // CUmodule
using Function = FunctionState*;  // CUfunction
using Stream = StreamState*;      // CUstream, and cudaStream_t

// CUdevice_attribute
constexpr int kMultiprocessorCount = 16, kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;
// CUfunction_attribute
constexpr int kMaxDynamicSharedBytes = 8;

// All functions throw std::runtime_error: if there is no driver, or with the driver's own message.
class Driver {
 public:
  // Opens the library once; `instance` may be called from any thread.
  static const Driver& instance();

  // Returns the unique id of the calling thread's context; ids are never reused in this process.
  unsigned long long current_context() const;
  // Returns an attribute of that context's device.
  int device_attribute(int attribute) const;
  // Loads a cubin into that context. `image` must be aligned to 8 bytes.
  Module load_module(const void* image) const;
  // Returns a kernel that may use `shared_bytes` of dynamic shared memory.
  Function function(Module module, const char* name, unsigned shared_bytes) const;
  void launch(Function function, unsigned grid_x, unsigned grid_y, unsigned threads, unsigned shared_bytes, Stream stream,
              void** parameters) const;

 private:
  Driver();
  void check(Result result, const char* call) const;

  Result (*get_current_)(Context*);
  Result (*get_id_)(Context, unsigned long long*);
  Result (*get_device_)(Device*);
  Result (*get_attribute_)(int*, int, Device);
  Result (*load_data_)(Module*, const void*);
  Result (*get_function_)(Function*, Module, const char*);
  Result (*set_attribute_)(Function, int, int);
  Result (*launch_kernel_)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Stream, void**, void**);
  Result (*get_error_string_)(Result, const char**);
};

}  // namespace echovlm::cuda
