// Compiled if ONNXRUNTIME_INCLUDE_DIR is given: checks every index that ort_abi.hpp declares against the official header.
#include <onnxruntime_c_api.h>

#include "ort_abi.hpp"

namespace {

namespace ours = echovlm::ort;

#define CHECK_SLOT(official, declared) \
  static_assert(offsetof(OrtApi, official) == ours::Api::declared::index * sizeof(void*), #official " has moved")

CHECK_SLOT(CreateStatus, CreateStatus);
CHECK_SLOT(CreateCustomOpDomain, CreateCustomOpDomain);
CHECK_SLOT(CustomOpDomain_Add, CustomOpDomainAdd);
CHECK_SLOT(AddCustomOpDomain, AddCustomOpDomain);
CHECK_SLOT(GetTensorMutableData, GetTensorMutableData);
CHECK_SLOT(AllocatorFree, AllocatorFree);
CHECK_SLOT(AllocatorGetInfo, AllocatorGetInfo);
CHECK_SLOT(KernelInfoGetAttribute_int64, KernelInfoGetAttributeInt64);
CHECK_SLOT(KernelContext_GetInputCount, KernelContextGetInputCount);
CHECK_SLOT(KernelContext_GetInput, KernelContextGetInput);
CHECK_SLOT(KernelContext_GetOutput, KernelContextGetOutput);
CHECK_SLOT(ReleaseStatus, ReleaseStatus);
CHECK_SLOT(ReleaseAllocator, ReleaseAllocator);
CHECK_SLOT(KernelInfoGetAttributeArray_int64, KernelInfoGetAttributeArrayInt64);
CHECK_SLOT(KernelContext_GetGPUComputeStream, KernelContextGetGPUComputeStream);
CHECK_SLOT(KernelContext_ParallelFor, KernelContextParallelFor);
CHECK_SLOT(KernelContext_GetScratchBuffer, KernelContextGetScratchBuffer);
CHECK_SLOT(KernelInfoGetAllocator, KernelInfoGetAllocator);
CHECK_SLOT(GetTensorElementTypeAndShapeDataReference, GetTensorElementTypeAndShape);

#define CHECK_CALLBACK(official, declared) \
  static_assert(offsetof(OrtCustomOp, official) == offsetof(ours::CustomOp, declared), #official " has moved")

CHECK_CALLBACK(version, version);
CHECK_CALLBACK(CreateKernel, create_kernel);
CHECK_CALLBACK(GetName, get_name);
CHECK_CALLBACK(GetExecutionProviderType, get_provider);
CHECK_CALLBACK(GetInputType, get_input_type);
CHECK_CALLBACK(GetInputTypeCount, get_input_count);
CHECK_CALLBACK(GetOutputType, get_output_type);
CHECK_CALLBACK(GetOutputTypeCount, get_output_count);
CHECK_CALLBACK(KernelCompute, compute);
CHECK_CALLBACK(KernelDestroy, destroy);
CHECK_CALLBACK(GetInputCharacteristic, get_input_characteristic);
CHECK_CALLBACK(GetOutputCharacteristic, get_output_characteristic);
CHECK_CALLBACK(GetInputMemoryType, get_input_memory_type);
CHECK_CALLBACK(GetVariadicInputMinArity, get_variadic_input_min_arity);
CHECK_CALLBACK(GetVariadicInputHomogeneity, get_variadic_input_homogeneity);
CHECK_CALLBACK(GetVariadicOutputMinArity, get_variadic_output_min_arity);
CHECK_CALLBACK(GetVariadicOutputHomogeneity, get_variadic_output_homogeneity);
CHECK_CALLBACK(CreateKernelV2, create_kernel_v2);
CHECK_CALLBACK(KernelComputeV2, compute_v2);
CHECK_CALLBACK(InferOutputShapeFn, infer_output_shape);
CHECK_CALLBACK(GetStartVersion, get_start_version);
CHECK_CALLBACK(GetEndVersion, get_end_version);
CHECK_CALLBACK(GetMayInplace, get_may_inplace);
CHECK_CALLBACK(ReleaseMayInplace, release_may_inplace);
CHECK_CALLBACK(GetAliasMap, get_alias_map);
CHECK_CALLBACK(ReleaseAliasMap, release_alias_map);

static_assert(sizeof(OrtCustomOp) >= sizeof(ours::CustomOp), "OrtCustomOp has shrunk");
static_assert(offsetof(OrtApiBase, GetVersionString) == offsetof(ours::ApiBase, get_version), "OrtApiBase has changed");
static_assert(ORT_API_VERSION >= ours::kApiVersion, "the header is older than the slots");
static_assert(ORT_FAIL == int{ours::kFail} && ORT_INVALID_ARGUMENT == int{ours::kInvalidArgument});
static_assert(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT == int{ours::kFloat} &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 == int{ours::kInt8} &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 == int{ours::kInt64} &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 == int{ours::kFloat16} &&
              ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 == int{ours::kBFloat16});
static_assert(OrtMemTypeDefault == int{ours::kDefaultMemory});
static_assert(INPUT_OUTPUT_REQUIRED == int{ours::kRequired} && INPUT_OUTPUT_OPTIONAL == int{ours::kOptional});

}  // namespace
