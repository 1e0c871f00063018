// Sentences for the user through TensorRT's logger, which a loader hands over by `setLoggerFinder`.
#pragma once

#include <NvInferRuntime.h>

#include <exception>

namespace echovlm {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// An error, "DualPathMoE: …"; to standard error where there is no logger, or where it fails.
void report(const char* sentence) noexcept;

// What `work` returns, or `failure` once its exception has been reported: TensorRT's callbacks must not throw.
template <class Result, class Work>
Result guarded(Result failure, Work&& work) noexcept {
  try {
    return work();
  } catch (const std::exception& thrown) {
    report(thrown.what());
  } catch (...) {
    report("an unknown error.");
  }
  return failure;
}

}  // namespace echovlm
