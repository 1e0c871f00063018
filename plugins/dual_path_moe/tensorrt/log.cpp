#include "log.hpp"

#include <atomic>
#include <cstdio>

namespace echovlm {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

void report(const std::string& sentence) {
  const std::string message = "DualPathMoE: " + sentence;
  nvinfer1::ILoggerFinder* const finder = logger_finder;
  if (nvinfer1::ILogger* const logger = finder ? finder->findLogger() : nullptr)
    logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
  else
    std::fprintf(stderr, "%s\n", message.c_str());
}

}  // namespace echovlm
