# Finds NvInfer.h and CUDA's headers: sets TENSORRT_INCLUDE_DIR, or explains in TENSORRT_MISSING what to install.
#
# In this order: TENSORRT_ROOT (a variable of CMake's or the environment's), the system's folder (JetPack, Debian packages), the
# kernel-lens wheel, which contains TensorRT 10.14's headers, in the interpreter's packages.
set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}" CACHE PATH "A folder that holds include/NvInfer.h")
include(${CMAKE_CURRENT_LIST_DIR}/../find_python.cmake)
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
          HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include
          PATHS /usr/include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu ${python_packages}/kernel_lens/include/tensorrt
          NO_CMAKE_FIND_ROOT_PATH)
if(NOT TENSORRT_INCLUDE_DIR)
  set(TENSORRT_MISSING "TensorRT's headers are not here: install kernel-lens (pip install --no-deps kernel-lens==2.0.1) or \
libnvinfer-headers-dev, or set TENSORRT_ROOT to a folder that holds include/NvInfer.h")
endif()

# Without CUDA's own headers, the two types that TensorRT's headers use.
include(${CMAKE_CURRENT_LIST_DIR}/../launch/find_cuda_headers.cmake)
if(NOT CUDA_INCLUDE_DIR)
  set(CUDA_TYPES_DIR ${CMAKE_CURRENT_LIST_DIR}/cuda_types)
endif()
