// Logs messages for the user through TensorRT's logger, which a loader sets with `setLoggerFinder`.
#pragma once

#include <NvInferRuntime.h>

#include <exception>

namespace echovlm {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// Logs an error as "plugin: sentence"; writes to standard error if there is no logger, or if it fails.
void report(const char* plugin, const char* sentence) noexcept;

// Returns what `work` returns; if it throws, reports the exception and returns `failure`, because TensorRT's callbacks must not throw.
template <class Result, class Work>
Result guarded(const char* plugin, Result failure, Work&& work) noexcept {
  try {
    return work();
  } catch (const std::exception& thrown) {
    report(plugin, thrown.what());
  } catch (...) {
    report(plugin, "an unknown error.");
  }
  return failure;
}

}  // namespace echovlm
