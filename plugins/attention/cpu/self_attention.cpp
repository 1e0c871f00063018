// Two phases: turn queries and keys, and lay out every head's keys and values; attend, by stretches of a window's rows.
#include "self_attention.hpp"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace echovlm {
namespace {

constexpr std::size_t kRowsOfTask = 96;
constexpr std::size_t kRowsToArrange = 64;

struct Window {
  std::size_t row, count;
  std::size_t block;  // of kKeyBlock keys: its first among all windows'
};

std::vector<Window> windows_of(const SelfAttentionInputs& in, std::size_t* blocks) {
  std::vector<Window> windows;
  *blocks = 0;
  for (std::size_t i = 0; i < in.windows; ++i) {
    const std::int64_t first = in.offsets[i], end = in.offsets[i + 1];
    if (first >= end || (i == 0 && first != 0) || static_cast<std::size_t>(end) > in.rows)
      throw std::invalid_argument("offsets must ascend from 0 to the number of rows.");
    windows.push_back({static_cast<std::size_t>(first), static_cast<std::size_t>(end - first), *blocks});
    *blocks += (windows.back().count + kKeyBlock - 1) / kKeyBlock;
  }
  if (windows.empty() || windows.back().row + windows.back().count != in.rows)
    throw std::invalid_argument("offsets must ascend from 0 to the number of rows.");
  return windows;
}

struct Stretch {
  const Window* window;
  std::size_t first, count;  // rows of the window
};

std::vector<Stretch> stretches_of(const std::vector<Window>& windows, std::size_t rows) {
  std::vector<Stretch> stretches;
  for (const Window& window : windows)
    for (std::size_t first = 0; first < window.count; first += rows)
      stretches.push_back({&window, first, std::min(rows, window.count - first)});
  return stretches;
}

constexpr std::size_t kByteRowsOfTask = 4 * kByteGroup;

void in_bytes(const AttentionKernels& kernels, const SelfAttentionInputs& in, const std::vector<Window>& windows, float* y,
              const Threads& threads, Workspace& workspace) {
  const std::size_t dim = in.dim, width = padded_dim(dim), bytes = byte_words(dim) * 4, row_values = in.heads * dim;
  std::size_t longest = 0;
  std::vector<std::size_t> starts;  // of each window's positions, padded
  std::size_t padded = 0;
  for (const Window& window : windows) {
    longest = std::max(longest, window.count);
    starts.push_back(padded);
    padded += (window.count + kSoftmaxBlock - 1) / kSoftmaxBlock * kSoftmaxBlock;
  }
  auto* const queries = workspace.x_values.reserve<std::uint8_t>(in.heads * in.rows * width);
  auto* const query_scales = workspace.x_scales.reserve<float>(in.heads * in.rows);
  auto* const keys = workspace.inner_values.reserve<std::int8_t>(in.heads * padded * bytes);
  auto* const key_scales = workspace.inner_scales.reserve<float>(in.heads * padded);
  auto* const corrections = workspace.inner_sums.reserve<std::int32_t>(in.heads * padded);
  auto* const values = workspace.logits.reserve<std::int8_t>(in.heads * padded * width);
  auto* const channels = workspace.group_weights.reserve<float>(in.heads * windows.size() * width * 2);
  const auto bytes_of = [&](std::size_t head, std::size_t window) {
    const std::size_t row = head * in.rows + windows[window].row, at = head * padded + starts[window];
    float* const channel = channels + (head * windows.size() + window) * width * 2;
    return ByteWindow{queries + row * width, query_scales + row,  keys + at * bytes, key_scales + at,
                      corrections + at,      values + at * width, channel,           channel + width};
  };
  for_each_task(threads, in.heads * windows.size(), [&](std::size_t task, std::size_t worker, std::size_t) {
    const std::size_t head = task % in.heads, window = task / in.heads, count = windows[window].count;
    const std::size_t row = windows[window].row;
    const ByteRows rows{in.qkv + row * 3 * row_values + head * dim, in.cos + row * dim / 2, in.sin + row * dim / 2, count, dim, row_values, 3 * row_values};
    kernels.bytes.arrange(rows, bytes_of(head, window), workspace.workers[worker].reserve<float>(2 * longest * width));
  });
  const std::vector<Stretch> attended = stretches_of(windows, kByteRowsOfTask);
  for_each_task(threads, attended.size() * in.heads, [&](std::size_t task, std::size_t worker, std::size_t) {
    const std::size_t head = task / attended.size();
    const Stretch& stretch = attended[task % attended.size()];
    const Window& window = *stretch.window;
    auto* const scratch = workspace.workers[worker].reserve<float>(kByteGroup * width);
    kernels.bytes.attend(bytes_of(head, static_cast<std::size_t>(&window - windows.data())), window.count, dim, stretch.first,
                         stretch.count, y + (window.row + stretch.first) * row_values + head * dim, row_values, scratch);
  });
}

}  // namespace

void self_attention(const Kernels& kernels, const SelfAttentionInputs& in, float* y, const Threads& threads, Workspace& workspace) {
  if (in.dim == 0 || in.dim % 2 != 0 || in.dim > kLargestHead)
    throw std::invalid_argument("a head must have an even number of values up to 512.");
  std::size_t blocks = 0;
  const std::vector<Window> windows = windows_of(in, &blocks);
  const AttentionKernels& attention = kernels.attention;
  if (in.in_bytes && attention.bytes.attend) {
    in_bytes(attention, in, windows, y, threads, workspace);
    return;
  }
  const std::size_t dim = in.dim, width = padded_dim(dim), row_values = in.heads * dim;
  const float scale = query_scale(dim);
  float* const q = workspace.x_values.reserve<float>(in.rows * row_values);
  float* const k = workspace.inner_values.reserve<float>(blocks * kKeyBlock * row_values);
  float* const v = workspace.inner_scales.reserve<float>(in.rows * row_values);

  const std::vector<Stretch> arranged = stretches_of(windows, kRowsToArrange);
  for_each_task(threads, arranged.size() * in.heads, [&](std::size_t task, std::size_t, std::size_t) {
    const Stretch& stretch = arranged[task / in.heads];
    const std::size_t head = task % in.heads;
    float key[kLargestHead];
    for (std::size_t i = stretch.first; i < stretch.first + stretch.count; ++i) {
      const std::size_t row = stretch.window->row + i;
      const float* const x = in.qkv + row * 3 * row_values + head * dim;
      const float *const cos = in.cos + row * dim / 2, *const sin = in.sin + row * dim / 2;
      attention.rotate(x, cos, sin, dim, scale, nullptr, q + (head * in.rows + row) * dim);
      attention.rotate(x + row_values, cos, sin, dim, 1.0f, nullptr, key);
      float* const block = k + (head * blocks + stretch.window->block + i / kKeyBlock) * dim * kKeyBlock;
      attention.store(key, dim, CacheType::kFloat32, nullptr, block + i % kKeyBlock, kKeyBlock);
      std::memcpy(v + (head * in.rows + row) * dim, x + 2 * row_values, dim * sizeof(float));
    }
  });

  const std::vector<Stretch> attended = stretches_of(windows, kRowsOfTask);
  for_each_task(threads, attended.size() * in.heads, [&](std::size_t task, std::size_t worker, std::size_t) {
    const std::size_t head = task / attended.size();
    const Stretch& stretch = attended[task % attended.size()];
    const Window& window = *stretch.window;
    const std::size_t work = attend_scratch(dim, stretch.count);
    auto* const scratch = workspace.workers[worker].reserve<float>(work + kRowsOfTask * (width + 2));
    float* const values = scratch + work;
    const SoftmaxState state{values, values + kRowsOfTask * width, values + kRowsOfTask * (width + 1)};
    std::size_t limits[kRowsOfTask];
    for (std::size_t i = 0; i < stretch.count; ++i) limits[i] = window.count;
    const std::size_t first = window.row + stretch.first;
    const KeysAndValues all{k + (head * blocks + window.block) * dim * kKeyBlock, v + (head * in.rows + window.row) * dim,
                            CacheType::kFloat32, dim, dim, nullptr};
    attention.attend(all, {q + (head * in.rows + first) * dim, limits, stretch.count}, 0, window.count, state, scratch);
    for (std::size_t i = 0; i < stretch.count; ++i) {
      const float share = 1.0f / state.divisors[i];
      float* const to = y + (first + i) * row_values + head * dim;
      for (std::size_t d = 0; d < dim; ++d) to[d] = state.values[i * width + d] * share;
    }
  });
}

}  // namespace echovlm
