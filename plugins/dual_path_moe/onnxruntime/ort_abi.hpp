// Declares the functions of ONNX Runtime's C API that the operators call, so that they build without its headers.
//
// OrtApi is a table of function pointers to which new versions only append; OrtCustomOp is a versioned table of callbacks. A slot
// below is an index into OrtApi of version kApiVersion. `OrtGetApi(kApiVersion)` returns null on a runtime that lacks any of them. With
// ONNXRUNTIME_INCLUDE_DIR the build checks every index below against the official header (ort_abi_check.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace echovlm::ort {

constexpr std::uint32_t kApiVersion = 24;  // the oldest version that has every slot below (ONNX Runtime 1.24)

struct Status;          // OrtStatus: null is success
struct SessionOptions;  // OrtSessionOptions
struct CustomOpDomain;  // OrtCustomOpDomain
struct KernelInfo;      // OrtKernelInfo: a node's attributes
struct KernelContext;   // OrtKernelContext: one call's inputs, outputs and threads
struct Value;           // OrtValue
struct Allocator;       // OrtAllocator: a provider's memory
struct MemoryInfo;      // OrtMemoryInfo: whose memory an allocator gives

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kUndefined = 0, kFloat = 1, kInt8 = 3, kInt64 = 7, kFloat16 = 10, kBFloat16 = 16 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kDefaultMemory = 0 };  // OrtMemType: the provider's own

// OrtApi, up to the last slot used. `Slot<I, F>` is function pointer F at index I of the table.
class Api {
 public:
  template <std::size_t Index, class Function>
  struct Slot {
    static constexpr std::size_t index = Index;
    using type = Function;
  };

  using CreateStatus = Slot<0, Status* (*)(ErrorCode, const char*)>;
  using CreateCustomOpDomain = Slot<26, Status* (*)(const char*, CustomOpDomain**)>;
  using CustomOpDomainAdd = Slot<27, Status* (*)(CustomOpDomain*, const struct CustomOp*)>;
  using AddCustomOpDomain = Slot<28, Status* (*)(SessionOptions*, CustomOpDomain*)>;
  using GetTensorMutableData = Slot<51, Status* (*)(Value*, void**)>;
  using AllocatorFree = Slot<76, Status* (*)(Allocator*, void*)>;
  using AllocatorGetInfo = Slot<77, Status* (*)(const Allocator*, const MemoryInfo**)>;
  using KernelInfoGetAttributeInt64 = Slot<86, Status* (*)(const KernelInfo*, const char*, std::int64_t*)>;
  using KernelContextGetInputCount = Slot<88, Status* (*)(const KernelContext*, std::size_t*)>;
  using KernelContextGetInput = Slot<90, Status* (*)(const KernelContext*, std::size_t, const Value**)>;
  using KernelContextGetOutput =
      Slot<91, Status* (*)(KernelContext*, std::size_t, const std::int64_t*, std::size_t, Value**)>;
  using ReleaseStatus = Slot<93, void (*)(Status*)>;
  using ReleaseAllocator = Slot<132, void (*)(Allocator*)>;
  using KernelInfoGetAttributeArrayInt64 =
      Slot<163, Status* (*)(const KernelInfo*, const char*, std::int64_t*, std::size_t*)>;
  using KernelContextGetGPUComputeStream = Slot<193, Status* (*)(const KernelContext*, void**)>;
  using KernelContextParallelFor =
      Slot<274, Status* (*)(const KernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*)>;
  using KernelContextGetScratchBuffer = Slot<277, Status* (*)(const KernelContext*, const MemoryInfo*, std::size_t, void**)>;
  using KernelInfoGetAllocator = Slot<278, Status* (*)(const KernelInfo*, MemoryType, Allocator**)>;
  using GetTensorElementTypeAndShape =
      Slot<414, Status* (*)(const Value*, ElementType*, const std::int64_t**, std::size_t*)>;

  template <class S>
  typename S::type get() const {
    return reinterpret_cast<typename S::type>(slots_[S::index]);
  }

 private:
  void (*slots_[415])();
};

// OrtApiBase
struct ApiBase {
  const Api* (*get_api)(std::uint32_t version);
  const char* (*get_version)();
};

// OrtCustomOp
struct CustomOp {
  std::uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*get_name)(const CustomOp*);
  const char* (*get_provider)(const CustomOp*);
  ElementType (*get_input_type)(const CustomOp*, std::size_t);
  std::size_t (*get_input_count)(const CustomOp*);
  ElementType (*get_output_type)(const CustomOp*, std::size_t);
  std::size_t (*get_output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Characteristic (*get_input_characteristic)(const CustomOp*, std::size_t);
  Characteristic (*get_output_characteristic)(const CustomOp*, std::size_t);
  int (*get_input_memory_type)(const CustomOp*, std::size_t);
  int (*get_variadic_input_min_arity)(const CustomOp*);
  int (*get_variadic_input_homogeneity)(const CustomOp*);
  int (*get_variadic_output_min_arity)(const CustomOp*);
  int (*get_variadic_output_homogeneity)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_output_shape)(const CustomOp*, void*);
  int (*get_start_version)(const CustomOp*);
  int (*get_end_version)(const CustomOp*);
  std::size_t (*get_may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  std::size_t (*get_alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};

}  // namespace echovlm::ort
