#include "planner.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace echovlm {
namespace {

constexpr std::int64_t kMostSplits = 8, kProgramsPerMultiprocessor = 4;
constexpr std::int64_t kBufferAlignment = 256, kMostBytes = std::int64_t{1} << 60;

[[noreturn]] void refuse() { throw std::overflow_error("the workspace for so many tokens would be larger than any memory."); }

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Lays out buffers one after another, each at a multiple of kBufferAlignment.
class Layout {
 public:
  // Adds a buffer whose size in bytes is the product of the factors; returns its offset.
  std::size_t place(std::initializer_list<std::int64_t> factors) {
    const std::int64_t start = end_, bytes = product(factors);
    if (bytes > kMostBytes - start) refuse();
    end_ = divide_up(start + bytes, kBufferAlignment) * kBufferAlignment;
    return static_cast<std::size_t>(start);
  }
  std::size_t end() const { return static_cast<std::size_t>(end_); }

 private:
  std::int64_t end_ = 0;
};

WorkspaceLayout decode_workspace(const MoeShape& shape, std::int64_t tokens, std::int64_t splits) {
  Layout layout;
  WorkspaceLayout workspace{};
  workspace.group_weights = layout.place({4, tokens, shape.groups()});
  workspace.inner = layout.place({2, tokens, shape.total_width()});
  workspace.parts = layout.place({4, splits, tokens, shape.hidden});
  workspace.bytes = layout.end();
  return workspace;
}

WorkspaceLayout prefill_workspace(const MoeShape& shape, std::int64_t tokens, std::int64_t splits) {
  Layout layout;
  WorkspaceLayout workspace{};
  workspace.group_weights = layout.place({4, tokens, shape.groups()});
  workspace.inner = layout.place({2, tokens, shape.total_width()});
  if (splits > 1) workspace.parts = layout.place({4, splits, tokens, shape.hidden});
  workspace.expert_tokens = layout.place({4, shape.experts, tokens});
  workspace.expert_counts = layout.place({4, shape.experts});
  workspace.bytes = layout.end();
  return workspace;
}

std::int64_t group_programs(const MoeShape& shape, std::int64_t rows) {
  return divide_up(shape.dense, rows) + divide_up(shape.shared, rows) + shape.experts * divide_up(shape.expert, rows);
}

std::int64_t split_count(std::int64_t programs, std::int64_t multiprocessors) {
  std::int64_t splits = 1;
  while (splits < kMostSplits && splits * programs < kProgramsPerMultiprocessor * multiprocessors) splits *= 2;
  return splits;
}

Grid grid(std::int64_t x, std::int64_t y) {
  if (std::max(x, y) > std::numeric_limits<std::int32_t>::max()) refuse();  // kernels count tokens in 32 bits
  return {static_cast<std::uint32_t>(x), static_cast<std::uint32_t>(y)};
}

Launch launch(Kernel kernel, std::int64_t x, std::int64_t y = 1) {
  const Grid programs = grid(x, y);
  return {kernel, programs.x, programs.y};
}

Launch sum_parts(const MoeShape& shape, std::int64_t tokens, const Tiles& tiles) {
  return launch(Kernel::kSumParts, divide_up(product({tokens, shape.hidden}), tiles.elements));
}

}  // namespace

std::int64_t product(std::initializer_list<std::int64_t> factors) {
  std::int64_t product = 1;
  for (const std::int64_t factor : factors)
    if (factor < 0 || __builtin_mul_overflow(product, factor, &product)) refuse();
  return product;
}

MoeShape MoeShape::of(const Attributes& attributes, std::int64_t hidden) {
  const auto& widths = attributes.group_widths;
  return {hidden, widths.at(0), widths.at(1), widths.at(2), attributes.experts()};
}

const char* kernel_name(Kernel kernel) {
  constexpr const char* names[kKernels] = {"route",     "sort",            "gate_up_decode", "down_decode",
                                           "sum_parts", "gate_up_prefill", "down_prefill"};
  return names[static_cast<std::size_t>(kernel)];
}

LaunchPlan plan_decode(const MoeShape& shape, std::int64_t tokens, const Tiles& tiles, std::int64_t multiprocessors) {
  const std::int64_t down_programs = divide_up(shape.hidden, tiles.down_rows);
  const std::int64_t splits = split_count(down_programs, multiprocessors);
  return {{launch(Kernel::kRoute, tokens), launch(Kernel::kGateUpDecode, group_programs(shape, tiles.gate_up_rows)),
           launch(Kernel::kDownDecode, down_programs, splits), sum_parts(shape, tokens, tiles)},
          splits,
          decode_workspace(shape, tokens, splits)};
}

LaunchPlan plan_prefill(const MoeShape& shape, std::int64_t tokens, const Tiles& tiles, std::int64_t multiprocessors) {
  const std::int64_t token_tiles = divide_up(tokens, tiles.tokens), row_tiles = divide_up(shape.hidden, tiles.down_rows);
  const std::int64_t splits = tokens <= kSplitTokens ? split_count(row_tiles, multiprocessors) : 1;
  LaunchPlan plan{{launch(Kernel::kRoute, tokens), launch(Kernel::kSort, shape.experts),
                   launch(Kernel::kGateUpPrefill, token_tiles, group_programs(shape, tiles.gate_up_rows)),
                   launch(Kernel::kDownPrefill, token_tiles * splits, row_tiles)},
                  splits,
                  prefill_workspace(shape, tokens, splits)};
  if (splits > 1) plan.launches.push_back(sum_parts(shape, tokens, tiles));
  return plan;
}

Grid plan_linear(std::int64_t tokens, std::int64_t outputs, std::int64_t tile_tokens, std::int64_t tile_rows) {
  return grid(divide_up(tokens, tile_tokens), divide_up(outputs, tile_rows));
}

std::size_t largest_workspace(const MoeShape& shape, std::int64_t most) {
  return std::max({decode_workspace(shape, std::min(most, kDecodeTokens), kMostSplits).bytes,
                   prefill_workspace(shape, std::min(most, kSplitTokens), kMostSplits).bytes,
                   prefill_workspace(shape, most, 1).bytes});
}

}  // namespace echovlm
