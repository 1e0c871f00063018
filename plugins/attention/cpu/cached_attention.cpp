// Three phases: turn queries and keys and write the caches; attend, by runs of a sequence's rows; add up long caches' segments.
#include "cached_attention.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace echovlm {
namespace {

// Positions that are summed apart and then added in their order: what several threads can share of one row.
constexpr std::size_t kSegment = 1024;
constexpr std::size_t kQueriesOfTask = 96;
constexpr std::size_t kFewRows = 8;  // of a run, whose segments are tasks of their own
constexpr std::size_t kRowsWithoutThreads = 8;

// Rows of one sequence, at neighbouring positions.
struct Run {
  std::size_t row, count;
};

std::vector<Run> runs_of(const CachedAttentionInputs& in) {
  std::vector<std::int64_t> last(in.slot_count, -1);
  std::vector<Run> runs;
  for (std::size_t row = 0; row < in.rows; ++row) {
    const std::int64_t slot = in.slots[row], position = in.positions[row];
    const auto refuse = [&](const std::string& why) {
      throw std::invalid_argument("row " + std::to_string(row) + " has " + why);
    };
    if (slot < 0 || static_cast<std::size_t>(slot) >= in.slot_count)
      refuse("slot " + std::to_string(slot) + ", but there are " + std::to_string(in.slot_count) + ".");
    if (position < 0 || static_cast<std::size_t>(position) >= in.capacity)
      refuse("position " + std::to_string(position) + ", but a slot has " + std::to_string(in.capacity) + ".");
    if (position <= last[slot]) refuse("a position that is not after the one before in its slot.");
    last[slot] = position;
    if (row > 0 && in.slots[row - 1] == slot && in.positions[row - 1] + 1 == position)
      ++runs.back().count;
    else
      runs.push_back({row, 1});
  }
  return runs;
}

// Some neighbouring rows of a run with all query heads of one KV head, over all segments, or over one.
struct Task {
  std::size_t row, count, kv_head;
  std::size_t first, last;  // positions
  std::size_t state;        // of its first query row in the shared states, where its segments are tasks
  bool whole;
};

class Call {
 public:
  Call(const Kernels& kernels, const CachedAttentionInputs& in, float* y, Workspace& workspace)
      : kernels_(kernels.attention), in_(in), y_(y), workspace_(workspace), group_(in.heads / in.kv_heads), width_(padded_dim(in.dim)),
        size_(size_of(in.type)) {
    q_ = workspace.x_values.reserve<float>(in.rows * in.heads * in.dim);
    limits_ = workspace.token_lists.reserve<std::size_t>(in.rows * group_);
    for (std::size_t row = 0; row < in.rows; ++row)
      for (std::size_t head = 0; head < group_; ++head) limits_[row * group_ + head] = static_cast<std::size_t>(in.positions[row]) + 1;
  }

  void run(const Threads& threads) {
    const std::vector<Run> runs = runs_of(in_);
    if (in_.rows <= kRowsWithoutThreads)
      for (std::size_t row = 0; row < in_.rows; ++row) write(row);
    else
      for_each_task(threads, in_.rows, [&](std::size_t row, std::size_t, std::size_t) { write(row); });
    plan(runs);
    values_ = workspace_.inner_values.reserve<float>(states_ * width_);
    divisors_ = workspace_.inner_scales.reserve<float>(states_);
    peaks_ = workspace_.inner_sums.reserve<float>(states_);
    for_each_task(threads, tasks_.size(), [&](std::size_t task, std::size_t worker, std::size_t) { attend(tasks_[task], worker); });
    for (const Task& task : tasks_)
      if (!task.whole && task.first == 0) join(task);
  }

 private:
  // Queries of kv head h lie together: [kv_heads][rows][group][dim], so that neighbouring rows' queries neighbour.
  float* query(std::size_t kv_head, std::size_t row) const { return q_ + (kv_head * in_.rows + row) * group_ * in_.dim; }

  std::size_t cache_head(std::size_t row, std::size_t kv_head) const {
    return static_cast<std::size_t>(in_.slots[row]) * in_.kv_heads + kv_head;
  }

  void write(std::size_t row) const {
    const std::size_t dim = in_.dim, position = static_cast<std::size_t>(in_.positions[row]);
    const float* const x = in_.qkv + row * (in_.heads + 2 * in_.kv_heads) * dim;
    const float *const cos = in_.cos + row * dim / 2, *const sin = in_.sin + row * dim / 2;
    const float scale = query_scale(dim);
    for (std::size_t kv_head = 0; kv_head < in_.kv_heads; ++kv_head) {
      const float* const key_scales = in_.key_scales ? in_.key_scales + kv_head * dim : nullptr;
      for (std::size_t head = 0; head < group_; ++head)
        kernels_.rotate(x + (kv_head * group_ + head) * dim, cos, sin, dim, scale, key_scales, query(kv_head, row) + head * dim);
      float key[kLargestHead];
      kernels_.rotate(x + (in_.heads + kv_head) * dim, cos, sin, dim, 1.0f, nullptr, key);
      const std::size_t head = cache_head(row, kv_head) * in_.capacity * dim;
      auto* const keys = static_cast<std::uint8_t*>(in_.keys) + (head + position / kKeyBlock * kKeyBlock * dim + position % kKeyBlock) * size_;
      auto* const values = static_cast<std::uint8_t*>(in_.values) + (head + position * dim) * size_;
      kernels_.store(key, dim, in_.type, key_scales, keys, kKeyBlock);
      kernels_.store(x + (in_.heads + in_.kv_heads + kv_head) * dim, dim, in_.type,
                     in_.value_scales ? in_.value_scales + kv_head * dim : nullptr, values, 1);
    }
  }

  void plan(const std::vector<Run>& runs) {
    const std::size_t rows = std::max<std::size_t>(1, kQueriesOfTask / group_);
    // The last rows of a run see most: they begin first, so that no thread is left with a long task at the end.
    for (const Run& run : runs) {
      for (std::size_t end = run.count; end > 0;) {
        const std::size_t some = end < rows ? end : rows, row = run.row + end - some;
        end -= some;
        const std::size_t seen = static_cast<std::size_t>(in_.positions[row + some - 1]) + 1;
        for (std::size_t kv_head = 0; kv_head < in_.kv_heads; ++kv_head) {
          if (run.count > kFewRows || seen <= kSegment) {
            tasks_.push_back({row, some, kv_head, 0, seen, 0, true});
            continue;
          }
          for (std::size_t first = 0; first < seen; first += kSegment) {
            tasks_.push_back({row, some, kv_head, first, std::min(seen, first + kSegment), states_, false});
            states_ += some * group_;
          }
        }
      }
    }
  }

  void attend(const Task& task, std::size_t worker) const {
    const std::size_t rows = task.count * group_, dim = in_.dim, head = cache_head(task.row, task.kv_head);
    const KeysAndValues cache{static_cast<const std::uint8_t*>(in_.keys) + head * in_.capacity * dim * size_,
                              static_cast<const std::uint8_t*>(in_.values) + head * in_.capacity * dim * size_,
                              in_.type,
                              dim,
                              dim,
                              in_.value_scales ? in_.value_scales + task.kv_head * dim : nullptr};
    const QueryRows queries{query(task.kv_head, task.row), limits_ + task.row * group_, rows};
    const std::size_t work = attend_scratch(dim, rows), state = rows * (width_ + 2);
    auto* const scratch = workspace_.workers[worker].reserve<float>(work + 2 * state);
    if (!task.whole) {
      kernels_.attend(cache, queries, task.first, task.last, state_at(task.state), scratch);
      return;
    }
    float* const total = scratch + work;
    const SoftmaxState sum{total, total + rows * width_, total + rows * (width_ + 1)};
    const SoftmaxState next{total + state, total + state + rows * width_, total + state + rows * (width_ + 1)};
    kernels_.attend(cache, queries, 0, std::min(task.last, kSegment), sum, scratch);
    for (std::size_t first = kSegment; first < task.last; first += kSegment) {
      kernels_.attend(cache, queries, first, std::min(task.last, first + kSegment), next, scratch);
      for (std::size_t row = 0; row < rows; ++row)
        if (queries.limits[row] > first) add(sum, row, next, row);
    }
    output(task, sum);
  }

  // A run of few rows: its segments' states follow one another.
  void join(const Task& task) const {
    const std::size_t rows = task.count * group_;
    const SoftmaxState sum = state_at(task.state);
    std::size_t state = task.state;
    for (std::size_t first = kSegment; first < limits_[(task.row + task.count - 1) * group_]; first += kSegment) {
      state += rows;
      for (std::size_t row = 0; row < rows; ++row)
        if (limits_[task.row * group_ + row] > first) add(sum, row, state_at(state), row);
    }
    output(task, sum);
  }

  SoftmaxState state_at(std::size_t state) const { return {values_ + state * width_, divisors_ + state, peaks_ + state}; }

  // sum += segment, each relative to its own peak.
  void add(const SoftmaxState& sum, std::size_t to, const SoftmaxState& segment, std::size_t from) const {
    const float before = sum.peaks[to], peak = segment.peaks[from] > before ? segment.peaks[from] : before;
    const float a = std::exp2(before - peak), b = std::exp2(segment.peaks[from] - peak);
    float* const values = sum.values + to * width_;
    const float* const more = segment.values + from * width_;
    for (std::size_t i = 0; i < width_; ++i) values[i] = values[i] * a + more[i] * b;
    sum.divisors[to] = sum.divisors[to] * a + segment.divisors[from] * b;
    sum.peaks[to] = peak;
  }

  void output(const Task& task, const SoftmaxState& state) const {
    for (std::size_t row = 0; row < task.count; ++row) {
      float* const y = y_ + ((task.row + row) * in_.heads + task.kv_head * group_) * in_.dim;
      for (std::size_t head = 0; head < group_; ++head) {
        const std::size_t at = row * group_ + head;
        const float share = 1.0f / state.divisors[at];
        for (std::size_t i = 0; i < in_.dim; ++i) y[head * in_.dim + i] = state.values[at * width_ + i] * share;
      }
    }
  }

  const AttentionKernels& kernels_;
  const CachedAttentionInputs& in_;
  float* const y_;
  Workspace& workspace_;
  const std::size_t group_, width_, size_;
  float* q_;
  std::size_t* limits_;
  float *values_ = nullptr, *divisors_ = nullptr, *peaks_ = nullptr;
  std::vector<Task> tasks_;
  std::size_t states_ = 0;
};

}  // namespace

void cached_attention(const Kernels& kernels, const CachedAttentionInputs& inputs, float* y, const Threads& threads,
                      Workspace& workspace) {
  if (inputs.kv_heads == 0 || inputs.heads % inputs.kv_heads != 0 || inputs.dim == 0 || inputs.dim % 2 != 0 || inputs.dim > kLargestHead)
    throw std::invalid_argument("heads must be a multiple of kv_heads, and a head have an even number of values up to 512.");
  if (inputs.capacity % kKeyBlock != 0) throw std::invalid_argument("a cache's capacity must be a multiple of 16.");
  if (inputs.rows == 0) return;
  Call(kernels, inputs, y, workspace).run(threads);
}

}  // namespace echovlm
