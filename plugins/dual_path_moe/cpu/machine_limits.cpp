// Measures the two limits that benchmarks compare with: this computer's memory read bandwidth and int8 operations a second.
#include <atomic>
#include <chrono>

#include "c_interface.hpp"
#include "dispatch.hpp"
#include "own_threads.hpp"

namespace {

using namespace echovlm;
using Clock = std::chrono::steady_clock;

// Returns work per second, the best of `runs`. A barrier starts all threads together.
template <class Work>
double best_rate(std::int64_t threads, std::int64_t runs, Work&& work) {
  double best = 0;
  for (std::int64_t run = 0; run < runs; ++run) {
    std::atomic<std::int64_t> waiting{threads};
    std::atomic<double> done{0};
    Clock::time_point start{};
    struct Shared {
      Work& work;
      std::atomic<std::int64_t>& waiting;
      std::atomic<double>& done;
      Clock::time_point& start;
    } shared{work, waiting, done, start};
    OwnThreads(static_cast<std::size_t>(threads))
        .run(
            static_cast<std::size_t>(threads),
            [](void* data, std::size_t thread) {
              auto& state = *static_cast<Shared*>(data);
              if (state.waiting.fetch_sub(1) == 1) state.start = Clock::now();
              while (state.waiting.load() > 0) std::this_thread::yield();
              const double amount = state.work(thread);
              double before = state.done.load();
              while (!state.done.compare_exchange_weak(before, before + amount)) {
              }
            },
            &shared);
    const std::chrono::duration<double> seconds = Clock::now() - start;
    best = std::max(best, done.load() / seconds.count());
  }
  return best;
}

}  // namespace

double echovlm_read_bandwidth(const void* data, std::size_t bytes, std::int64_t threads, std::int64_t runs) {
  const std::size_t share = bytes / static_cast<std::size_t>(threads) / 64 * 64;
  return best_rate(threads, runs, [=](std::size_t thread) {
    static std::atomic<std::uint64_t> kept{0};
    kept += kernels().read(static_cast<const std::uint8_t*>(data) + thread * share, share);
    return static_cast<double>(share);
  });
}

double echovlm_int8_peak(std::int64_t threads, std::int64_t runs) {
  return best_rate(threads, runs, [](std::size_t) { return kernels().peak(1'000'000); });
}
