// Threads created for one call, for use without ONNX Runtime (tests, sanitizers, benchmarks).
#pragma once

#include <thread>
#include <vector>

#include "threads.hpp"

namespace echovlm {

class OwnThreads final : public Threads {
 public:
  explicit OwnThreads(std::size_t count) : count_(std::max<std::size_t>(1, count)) {}

  void run(std::size_t count, void (*work)(void*, std::size_t), void* data) const override {
    const auto strided = [=](std::size_t first) {
      for (std::size_t i = first; i < count; i += count_) work(data, i);
    };
    std::vector<std::thread> others;
    for (std::size_t i = 1; i < std::min(count_, count); ++i) others.emplace_back(strided, i);
    strided(0);
    for (std::thread& other : others) other.join();
  }

 private:
  std::size_t count_;
};

}  // namespace echovlm
