// Distributes tasks one at a time over the threads of a thread pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>

namespace echovlm {

constexpr std::size_t kMaxWorkers = 64;
constexpr std::size_t kPlenty = 4;  // tasks left per worker

// Calls `work(data, i)` for every i below `count` on the pool's threads, and returns when all calls have returned.
class Threads {
 public:
  virtual ~Threads() = default;
  virtual void run(std::size_t count, void (*work)(void*, std::size_t), void* data) const = 0;
};

// Calls body(task, worker, following) for every task. A worker number is below kMaxWorkers and used by one thread at a time.
// A thread takes its next task when it has finished one, so that a slow core does not delay the others. While at least kPlenty tasks per
// worker are left, it reserves the next task, `following`, before it runs `task`, so that body can prefetch its weights. Near the end
// nothing is reserved, and `following` is `tasks` or larger.
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
    const auto take = [&] { return state.next.fetch_add(1, std::memory_order_relaxed); };
    std::size_t task = take();
    if (task >= state.tasks) return;
    const std::size_t worker = state.workers.fetch_add(1, std::memory_order_relaxed);
    try {
      while (task < state.tasks) {
        const bool plenty = state.tasks - task > kPlenty * state.workers.load(std::memory_order_relaxed);
        const std::size_t following = plenty ? take() : state.tasks;
        state.body(task, worker, following);
        task = plenty ? following : take();
      }
    } catch (const std::bad_alloc&) {  // must not cross the pool's own code
      state.out_of_memory = true;
    }
  };
  threads.run(std::min(tasks, kMaxWorkers), drain, &shared);
  if (shared.out_of_memory) throw std::bad_alloc();
}

}  // namespace echovlm
