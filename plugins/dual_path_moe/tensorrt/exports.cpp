#include "exports.hpp"

#include "log.hpp"
#include "plugin.hpp"

nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static echovlm::DualPathMoECreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { echovlm::set_logger_finder(finder); }
