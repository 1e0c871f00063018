// What cuda_driver_double.cpp recorded, for the test that launches through it.
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
  std::vector<LaunchSeen> launches;
};

extern "C" CudaDriverDouble* cuda_driver_double();
