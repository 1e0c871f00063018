# Sets CUDA_INCLUDE_DIR to the folder of CUDA's own headers, if they are installed.
find_path(CUDA_INCLUDE_DIR cuda.h HINTS $ENV{CUDA_HOME} PATHS /usr/local/cuda PATH_SUFFIXES include NO_CMAKE_FIND_ROOT_PATH)
