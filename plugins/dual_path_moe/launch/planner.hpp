// Plans which kernels run for a number of tokens, with which grids and workspace: the formulas of ../cuda/README.md as a pure function.
//
// ../cuda/planner.py is the same function in Python; a test compares them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "attributes.hpp"

namespace echovlm {

// The kernels of a call by its tokens: up to kDecodeTokens decode's, which read weights once, above them prefill's. Up to kSplitTokens
// the columns of down are divided into parts, since there are few other programs.
constexpr std::int64_t kDecodeTokens = 16, kSplitTokens = 128;

struct MoeShape {
  std::int64_t hidden, dense, shared, expert, experts;

  // The attributes must be validated.
  static MoeShape of(const Attributes& attributes, std::int64_t hidden);

  std::int64_t groups() const { return 2 + experts; }
  std::int64_t total_width() const { return dense + shared + expert * experts; }
};

enum class Kernel { kRoute, kSort, kGateUpDecode, kDownDecode, kSumParts, kGateUpPrefill, kDownPrefill };
constexpr std::size_t kKernels = 7;

// Returns the name in the archive.
const char* kernel_name(Kernel kernel);

// The constants of the chosen kernels that grids depend on.
struct Tiles {
  std::int64_t gate_up_rows, down_rows;
  std::int64_t tokens;    // prefill only
  std::int64_t elements;  // of sum_parts
};

struct Launch {
  Kernel kernel;
  std::uint32_t grid_x, grid_y;
};

// The offset of each buffer in the workspace, and the total size, in bytes.
struct WorkspaceLayout {
  std::size_t group_weights, inner, parts, expert_tokens, expert_counts, bytes;
};

struct LaunchPlan {
  std::vector<Launch> launches;
  std::int64_t splits;  // parts of down's columns
  WorkspaceLayout workspace;
};

// Throws std::overflow_error if the product needs more than 63 bits, or a factor is negative.
std::int64_t product(std::initializer_list<std::int64_t> factors);

// `tokens` at least 1; `multiprocessors` of the device. All three throw std::overflow_error if a workspace or grid would be
// larger than any device has.
LaunchPlan plan_decode(const MoeShape& shape, std::int64_t tokens, const Tiles& tiles, std::int64_t multiprocessors);
LaunchPlan plan_prefill(const MoeShape& shape, std::int64_t tokens, const Tiles& tiles, std::int64_t multiprocessors);

struct Grid {
  std::uint32_t x, y;
};

// Plans one product with `outputs` rows of weights by a kernel whose tile has so many tokens and rows. Throws likewise.
Grid plan_linear(std::int64_t tokens, std::int64_t outputs, std::int64_t tile_tokens, std::int64_t tile_rows);

// Returns a size that suffices for any number of tokens up to `most`, on any device and with any tile.
std::size_t largest_workspace(const MoeShape& shape, std::int64_t most);

}  // namespace echovlm
