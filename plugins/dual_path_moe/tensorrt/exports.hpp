// The functions that loaders call in the library.
#pragma once

#include <NvInferRuntime.h>

#define ECHOVLM_EXPORT __attribute__((visibility("default")))

extern "C" {

// TensorRT's IPluginRegistry::loadLibrary, trtexec's --staticPlugins and ONNX Runtime's trt_extra_plugin_lib_paths call both.
ECHOVLM_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count);
ECHOVLM_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder);
}
