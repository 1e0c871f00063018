// What cuda_driver_double.cpp recorded, for the tests that launch through it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct LaunchSeen {
  std::string entry;
  unsigned grid_x, grid_y, grid_z, threads, shared_bytes;
  std::uintptr_t stream;
  std::vector<std::uint64_t> parameters;
};

struct CudaDriverDouble {
  int major = 8, minor = 0, multiprocessors = 16;
  unsigned long long context = 1;  // 0: the thread has none
  int load_result = 0;
  int modules_loaded = 0;
  int launch_result = 0;
  std::vector<LaunchSeen> launches;
  // Called for each launch, if set: what a GPU would compute, on host memory.
  void (*on_launch)(const char* entry, const unsigned* grid, std::uintptr_t stream, const std::uint64_t* parameters) = nullptr;
};

extern "C" CudaDriverDouble* cuda_driver_double();
extern "C" void cuda_driver_double_on_launch(decltype(CudaDriverDouble::on_launch) called);
