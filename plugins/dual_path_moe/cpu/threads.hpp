// Work shared out one task at a time, over threads that somebody else owns.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>

namespace echovlm {

constexpr std::size_t kMaxWorkers = 64;

// Calls `work(data, i)` for every i below `count`, on as many threads as there are, and returns when all are done.
class Threads {
 public:
  virtual ~Threads() = default;
  virtual void run(std::size_t count, void (*work)(void*, std::size_t), void* data) const = 0;
};

// Calls body(task, worker) for every task. Each thread takes the next task when it is done with one, so that a slow core
// does not hold up the rest; a worker's number is below kMaxWorkers and belongs to one thread at a time.
template <class Body>
void for_each_task(const Threads& threads, std::size_t tasks, Body&& body) {
  struct Shared {
    Body& body;
    const std::size_t tasks;
    std::atomic<std::size_t> next{0}, workers{0};
    std::atomic<bool> out_of_memory{false};
  } shared{body, tasks};
  const auto drain = [](void* data, std::size_t) {
    auto& state = *static_cast<Shared*>(data);
    std::size_t task = state.next.fetch_add(1, std::memory_order_relaxed);
    if (task >= state.tasks) return;
    const std::size_t worker = state.workers.fetch_add(1, std::memory_order_relaxed);
    try {
      for (; task < state.tasks; task = state.next.fetch_add(1, std::memory_order_relaxed)) state.body(task, worker);
    } catch (const std::bad_alloc&) {  // must not cross the pool's own code
      state.out_of_memory = true;
    }
  };
  threads.run(std::min(tasks, kMaxWorkers), drain, &shared);
  if (shared.out_of_memory) throw std::bad_alloc();
}

}  // namespace echovlm
