#include "fields.hpp"

#include <cstring>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

namespace echovlm {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

template <class Integer>
void append(const PluginField& field, std::vector<std::int32_t>& values) {
  for (std::int32_t i = 0; i < field.length; ++i) {
    Integer value;  // copied, because not every caller aligns the data
    std::memcpy(&value, static_cast<const char*>(field.data) + i * sizeof(Integer), sizeof(Integer));
    if (value < std::numeric_limits<std::int32_t>::min() || value > std::numeric_limits<std::int32_t>::max())
      refuse(std::string(field.name) + " holds " + std::to_string(value) + ", which is out of range.");
    values.push_back(static_cast<std::int32_t>(value));
  }
}

}  // namespace

std::vector<std::int32_t> integers(const PluginField& field) {
  if (field.length < 0 || (field.length > 0 && !field.data)) refuse(std::string(field.name) + " has no values.");
  std::vector<std::int32_t> values;
  if (field.type == PluginFieldType::kINT32)
    append<std::int32_t>(field, values);
  else if (field.type == PluginFieldType::kINT64)
    append<std::int64_t>(field, values);
  else
    refuse(std::string(field.name) + " is not of integers: its type must be INT32 or INT64.");
  return values;
}

std::int32_t integer(const PluginField& field) {
  const std::vector<std::int32_t> values = integers(field);
  if (values.size() != 1)
    refuse(std::string(field.name) + " has " + std::to_string(values.size()) + " values, but it must have one.");
  return values[0];
}

void check_version(const PluginFieldCollection& fields, bool stored) {
  std::optional<std::int32_t> version;
  for (std::int32_t i = 0; i < fields.nbFields; ++i)
    if (fields.fields[i].name && std::strcmp(fields.fields[i].name, "version") == 0) version = integer(fields.fields[i]);
  if (!version) {
    if (stored) refuse("the engine stores no version of this plugin: rebuild it.");
  } else if (*version > kFieldsVersion) {
    refuse("the engine stores version " + std::to_string(*version) + " of this plugin, and this library knows versions up to " +
           std::to_string(kFieldsVersion) + ": use the library that the engine was built with, or rebuild the engine.");
  } else if (*version < 1) {
    refuse("version " + std::to_string(*version) + " is not a version.");
  }
}

const PluginFieldCollection& declared_fields() {
  static const std::array<PluginField, 5> fields{PluginField{"group_widths", nullptr, PluginFieldType::kINT32, 0},
                                                 PluginField{"top_k", nullptr, PluginFieldType::kINT32, 1},
                                                 PluginField{"norm_topk_prob", nullptr, PluginFieldType::kINT32, 1},
                                                 PluginField{"bits", nullptr, PluginFieldType::kINT32, 1},
                                                 PluginField{"block_size", nullptr, PluginFieldType::kINT32, 1}};
  static const PluginFieldCollection collection{static_cast<std::int32_t>(fields.size()), fields.data()};
  return collection;
}

Attributes attributes_of(const PluginFieldCollection& fields, bool stored) {
  check_version(fields, stored);
  Attributes attributes;
  for (std::int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    const std::string name = field.name ? field.name : "";
    if (name == "group_widths")
      attributes.group_widths = integers(field);
    else if (name == "top_k")
      attributes.top_k = integer(field);
    else if (name == "norm_topk_prob")
      attributes.norm_topk_prob = integer(field);
    else if (name == "bits")
      attributes.bits = integer(field);
    else if (name == "block_size")
      attributes.block_size = integer(field);
    else if (name != "version")
      refuse("there is no field '" + name + "': the fields are group_widths, top_k, norm_topk_prob, bits and block_size.");
  }
  attributes.validate();
  return attributes;
}

StoredFields::StoredFields(const Attributes& attributes)
    : attributes_(attributes),
      fields_{PluginField{"version", &version_, PluginFieldType::kINT32, 1},
              PluginField{"group_widths", attributes_.group_widths.data(), PluginFieldType::kINT32,
                          static_cast<std::int32_t>(attributes_.group_widths.size())},
              PluginField{"top_k", &attributes_.top_k, PluginFieldType::kINT32, 1},
              PluginField{"norm_topk_prob", &attributes_.norm_topk_prob, PluginFieldType::kINT32, 1},
              PluginField{"bits", &attributes_.bits, PluginFieldType::kINT32, 1},
              PluginField{"block_size", &attributes_.block_size, PluginFieldType::kINT32, 1}},
      collection_{static_cast<std::int32_t>(fields_.size()), fields_.data()} {}

}  // namespace echovlm
