#include "exports.hpp"

#include "linear_plugin.hpp"
#include "log.hpp"
#include "plugin.hpp"

nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
  static echovlm::DualPathMoECreator dual_path_moe;
  static echovlm::LinearCreator linear;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&dual_path_moe, &linear};
  count = 2;
  return creators;
}

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { echovlm::set_logger_finder(finder); }
