// One kernel of the archive on the current device: finding and loading it, its parameters, its launch.
#pragma once

#include <array>
#include <cstdint>

#include "archive.hpp"
#include "driver.hpp"
#include "planner.hpp"

namespace echovlm {

// One kernel's parameters, as cuLaunchKernel takes them: a pointer to each value.
class Parameters {
 public:
  void add(const void* pointer) { add_value(reinterpret_cast<std::uint64_t>(pointer)); }
  void add(std::int64_t number) { add_value(static_cast<std::uint32_t>(number)); }  // i32; the device is little-endian, too
  template <class... Values>
  void add_all(Values... values) {
    (add(values), ...);
  }
  // Triton's global and profile scratch, which every kernel takes behind its own parameters and none uses.
  void add_scratch();

  std::size_t count() const { return count_; }
  void** pointers() { return pointers_.data(); }

 private:
  static constexpr std::size_t kMost = 20;

  void add_value(std::uint64_t value);

  std::array<std::uint64_t, kMost> values_;
  std::array<void*, kMost> pointers_;
  std::size_t count_ = 0;
};

struct LoadedKernel {
  const KernelRecord* record = nullptr;
  cuda::Function function = nullptr;
};

// Returns 10 * major + minor of the current device's compute capability.
std::uint32_t current_sm();

// Finds a kernel as Archive::find does, and loads it into the calling thread's context, where it stays. Throws std::runtime_error if
// there is none for this device.
LoadedKernel load_kernel(const Archive& archive, std::uint32_t sm, const Variant& variant, const char* kernel,
                         std::uint32_t tile_tokens = 0);

// Queues one launch. Throws std::runtime_error if the kernel takes another number of parameters.
void launch_kernel(const LoadedKernel& kernel, Grid grid, Parameters& parameters, cuda::Stream stream);

// Throws std::runtime_error unless a tensor is aligned as the kernels need.
void check_aligned(const void* tensor, const char* name);

}  // namespace echovlm
