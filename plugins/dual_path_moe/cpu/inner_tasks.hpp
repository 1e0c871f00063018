// The sizes of the tasks that compute a feed-forward operator's inner values, and the memory of a thread that runs them.
#pragma once

#include "workspace.hpp"

namespace echovlm {

constexpr std::size_t kTokenChunk = 256;  // tokens of a task: their sums fit the L2 cache
constexpr std::size_t kInnerChunk = 128;  // inner values of a task: whole blocks, so that the task can quantize them
constexpr std::size_t kInnerStride = 2 * kInnerChunk;  // a token's gate sums, followed by its up sums

struct WorkerMemory {
  std::uint8_t* scratch;
  float* sums;  // [kTokenChunk, kInnerStride]
};

inline WorkerMemory worker_memory(Buffer& buffer) {
  constexpr std::size_t sums = kTokenChunk * kInnerStride;
  auto* scratch = buffer.reserve<std::uint8_t>(kScratchBytes + sums * sizeof(float));
  return {scratch, reinterpret_cast<float*>(scratch + kScratchBytes)};
}

}  // namespace echovlm
