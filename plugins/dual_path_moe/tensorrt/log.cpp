#include "log.hpp"

#include <atomic>
#include <cstdio>
#include <string>

namespace echovlm {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void report(const char* plugin, const char* sentence) noexcept {
  try {
    nvinfer1::ILoggerFinder* const finder = logger_finder;
    if (nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, (std::string(plugin) + ": " + sentence).c_str());
      return;
    }
  } catch (...) {  // the loader's own, or no memory
  }
  std::fprintf(stderr, "%s: %s\n", plugin, sentence);
}

}  // namespace echovlm
