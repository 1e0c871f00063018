// Reusable temporary memory, one workspace per concurrent call. It grows to the largest call so far.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.hpp"
#include "threads.hpp"

namespace echovlm {

// Aligned to a cache line, uninitialized, never shrinking.
class Buffer {
 public:
  template <class T>
  T* reserve(std::size_t count) {
    const std::size_t bytes = count * sizeof(T);
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<std::uint8_t*>(::operator new(bytes, std::align_val_t{64})));
      size_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(std::uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<std::uint8_t, Free> memory_;
  std::size_t size_ = 0;
};

// Computes a range of one group's inner values for some of its tokens.
struct InnerTask {
  std::uint32_t group, first_inner, inner, first, count;
};

struct Workspace {
  Buffer x_values, x_scales, x_sums;              // quantized input
  Buffer inner_values, inner_scales, inner_sums;  // output of SwiGLU, quantized or float
  Buffer logits, group_weights, token_lists, list_counts;
  std::vector<InnerTask> tasks;
  std::array<Buffer, kMaxWorkers> workers;
};

// Workspaces for all operators in the process: as many as calls have ever run concurrently.
class WorkspacePool {
 public:
  class Lease {
   public:
    explicit Lease(WorkspacePool& pool) : pool_(pool), workspace_(pool.take()) {}
    ~Lease() { pool_.give_back(std::move(workspace_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Workspace& operator*() { return *workspace_; }

   private:
    WorkspacePool& pool_;
    std::unique_ptr<Workspace> workspace_;
  };

  static WorkspacePool& shared() {
    static WorkspacePool pool;
    return pool;
  }

 private:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) {
      free_.reserve(++made_);  // so that give_back never allocates
      return std::make_unique<Workspace>();
    }
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }

  void give_back(std::unique_ptr<Workspace> workspace) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(workspace));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
  std::size_t made_ = 0;
};

}  // namespace echovlm
