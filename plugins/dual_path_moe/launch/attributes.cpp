#include "attributes.hpp"

#include <numeric>
#include <stdexcept>

namespace echovlm {
namespace {

constexpr std::int64_t kMostExperts = 64;
constexpr std::int64_t kFloatStep = 64;  // of widths, if weights are floating

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

}  // namespace

std::int64_t Attributes::total_width() const {
  return std::accumulate(group_widths.begin(), group_widths.end(), std::int64_t{0});
}

std::int64_t Attributes::width_step() const { return bits == 0 ? kFloatStep : block_size; }

void Attributes::validate() const {
  if (group_widths.size() < 3)
    refuse("group_widths has " + std::to_string(group_widths.size()) +
           " entries, but it needs one for dense, one for shared and one for each expert.");
  if (top_k < 1 || top_k > experts())
    refuse("top_k " + std::to_string(top_k) + " is not between 1 and the " + std::to_string(experts()) + " experts.");
  if (norm_topk_prob != 0 && norm_topk_prob != 1)
    refuse("norm_topk_prob " + std::to_string(norm_topk_prob) + " is neither 0 nor 1.");
  if (bits != 0 && bits != 4) refuse("bits " + std::to_string(bits) + " is neither 0 nor 4.");
  if (bits == 4 && block_size != 64 && block_size != 128)
    refuse("block_size " + std::to_string(block_size) + " is neither 64 nor 128.");
  if (bits == 0 && block_size != 0)
    refuse("block_size " + std::to_string(block_size) + " must be 0 if bits is 0.");
  if (experts() > kMostExperts)
    refuse("group_widths has " + std::to_string(experts()) + " experts, and the kernels take up to " +
           std::to_string(kMostExperts) + ".");
  for (const std::int32_t width : group_widths)
    if (width < 1 || width % width_step() != 0)
      refuse("group width " + std::to_string(width) + " is not a multiple of " +
             (bits == 0 ? "" : "block_size ") + std::to_string(width_step()) + ".");
  for (std::size_t group = 3; group < group_widths.size(); ++group)
    if (group_widths[group] != group_widths[2])
      refuse("group_widths has experts of widths " + std::to_string(group_widths[2]) + " and " +
             std::to_string(group_widths[group]) + ", and the kernels take experts of one width.");
}

std::string joined(const std::vector<std::int64_t>& values, const char* separator) {
  std::string text;
  for (const std::int64_t value : values) text += (text.empty() ? "" : separator) + std::to_string(value);
  return text;
}

std::string to_string(const Attributes& attributes) {
  return "group_widths=[" + joined({attributes.group_widths.begin(), attributes.group_widths.end()}, ",") +
         "],top_k=" + std::to_string(attributes.top_k) + ",norm_topk_prob=" + std::to_string(attributes.norm_topk_prob) +
         ",bits=" + std::to_string(attributes.bits) + ",block_size=" + std::to_string(attributes.block_size);
}

}  // namespace echovlm
