// Compiled if cuda.h is found: checks that driver.hpp's declarations match it.
#include <cuda.h>

#include <type_traits>

#include "driver.hpp"

namespace {

using namespace echovlm::cuda;

static_assert(sizeof(CUresult) == sizeof(Result) && CUDA_SUCCESS == 0);
static_assert(std::is_same_v<CUdevice, Device>);
static_assert(std::is_pointer_v<CUcontext> && std::is_pointer_v<CUmodule> && std::is_pointer_v<CUfunction> &&
              std::is_pointer_v<CUstream>);
static_assert(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT == kMultiprocessorCount);
static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == kComputeCapabilityMajor);
static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == kComputeCapabilityMinor);
static_assert(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == kMaxDynamicSharedBytes);

// The calls, by their official types: a changed signature does not compile.
static_assert(std::is_same_v<decltype(&cuCtxGetCurrent), CUresult (*)(CUcontext*)>);
static_assert(std::is_same_v<decltype(&cuCtxGetId), CUresult (*)(CUcontext, unsigned long long*)>);
static_assert(std::is_same_v<decltype(&cuCtxGetDevice), CUresult (*)(CUdevice*)>);
static_assert(std::is_same_v<decltype(&cuDeviceGetAttribute), CUresult (*)(int*, CUdevice_attribute, CUdevice)>);
static_assert(std::is_same_v<decltype(&cuModuleLoadData), CUresult (*)(CUmodule*, const void*)>);
static_assert(std::is_same_v<decltype(&cuModuleGetFunction), CUresult (*)(CUfunction*, CUmodule, const char*)>);
static_assert(std::is_same_v<decltype(&cuFuncSetAttribute), CUresult (*)(CUfunction, CUfunction_attribute, int)>);
static_assert(std::is_same_v<decltype(&cuLaunchKernel),
                             CUresult (*)(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                          CUstream, void**, void**)>);
static_assert(std::is_same_v<decltype(&cuGetErrorString), CUresult (*)(CUresult, const char**)>);

}  // namespace
