# Finds NvInfer.h and CUDA's headers: sets TENSORRT_INCLUDE_DIR, or explains in TENSORRT_MISSING what to install.
#
# In this order: TENSORRT_ROOT (a variable of CMake's or the environment's), the system's folder (JetPack, Debian packages), the
# kernel-lens wheel, which contains TensorRT 10.14's headers, in the interpreter's packages.
set(TENSORRT_ROOT "$ENV{TENSORRT_ROOT}" CACHE PATH "A folder that holds include/NvInfer.h")
find_package(Python 3.11 QUIET COMPONENTS Interpreter)
if(Python_FOUND)
  # Search the path instead of importing the module: an isolated build cannot import packages of the environment.
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import sysconfig; print(sysconfig.get_path('purelib'))"
                  OUTPUT_VARIABLE python_packages OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
          HINTS ${TENSORRT_ROOT} PATH_SUFFIXES include
          PATHS /usr/include/${CMAKE_SYSTEM_PROCESSOR}-linux-gnu ${python_packages}/kernel_lens/include/tensorrt
          NO_CMAKE_FIND_ROOT_PATH)
if(NOT TENSORRT_INCLUDE_DIR)
  set(TENSORRT_MISSING "TensorRT's headers are not here: install kernel-lens (pip install --no-deps kernel-lens==2.0.1) or \
libnvinfer-headers-dev, or set TENSORRT_ROOT to a folder that holds include/NvInfer.h")
endif()

# CUDA's own headers if they are installed, otherwise the two types that TensorRT's headers use.
find_path(CUDA_INCLUDE_DIR cuda.h HINTS $ENV{CUDA_HOME} PATHS /usr/local/cuda PATH_SUFFIXES include NO_CMAKE_FIND_ROOT_PATH)
if(NOT CUDA_INCLUDE_DIR)
  set(CUDA_TYPES_DIR ${CMAKE_CURRENT_LIST_DIR}/cuda_types)
endif()
