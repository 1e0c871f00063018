// Checks used by plugin_driver.cpp and plugin_callbacks.cpp.
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>

#include "cuda_driver_double.hpp"

void expect(bool holds, const char* what, int line);
CudaDriverDouble& driver_double();

// plugin_callbacks.cpp, if TensorRT's headers are.
void plugin_callbacks();

#define EXPECT(condition) expect((condition), #condition, __LINE__)
#define EXPECT_REFUSED(call, words)                                                      \
  try {                                                                                  \
    call;                                                                                \
    expect(false, "not refused: " #call, __LINE__);                                      \
  } catch (const std::exception& thrown) {                                               \
    if (!std::strstr(thrown.what(), words)) expect(false, thrown.what(), __LINE__);      \
  }
