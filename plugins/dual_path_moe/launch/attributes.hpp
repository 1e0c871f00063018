// DualPathMoE's attributes, validated for the GPU's kernels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace echovlm {

struct Attributes {
  std::vector<std::int32_t> group_widths;  // of dense, shared, expert 0, ...
  std::int32_t top_k = 0;
  std::int32_t norm_topk_prob = 0;  // 0 or 1
  std::int32_t bits = 0;            // 0 or 4
  std::int32_t block_size = 0;      // 64 or 128 with 4 bits

  std::int64_t experts() const { return static_cast<std::int64_t>(group_widths.size()) - 2; }
  std::int64_t total_width() const;
  // Returns the number of which the hidden width and every group's width must be multiples.
  std::int64_t width_step() const;

  // Throws std::invalid_argument with a message that names the attribute.
  void validate() const;
};

// Formats the attributes as the engine inspector shows them: group_widths=[384,256],top_k=2,...
std::string to_string(const Attributes& attributes);

// Formats a list of numbers for a message, for example "4, 8 and 15".
std::string joined(const std::vector<std::int64_t>& values, const char* separator = ", ");

}  // namespace echovlm
