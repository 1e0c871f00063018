# Sets `cuda_archive` to the archive of cubins to put into the libraries, or leaves it empty and says why.
set(cuda_archive "")
set(without_kernels "engines for TensorRT can be built, but not run, and bundles for cuda have DualPathMoE in ONNX Runtime's operators.")
include(${CMAKE_CURRENT_LIST_DIR}/../find_python.cmake)
if(NOT ECHOVLM_CUDA_KERNELS)
  message(STATUS "Building without CUDA kernels, as requested: ${without_kernels}")
elseif(ECHOVLM_ARCHIVE)
  if(NOT EXISTS ${ECHOVLM_ARCHIVE})
    message(FATAL_ERROR "There is no file ${ECHOVLM_ARCHIVE}, which ECHOVLM_ARCHIVE names.")
  endif()
  get_filename_component(cuda_archive ${ECHOVLM_ARCHIVE} ABSOLUTE)
elseif(IS_DIRECTORY "${python_packages}/triton")
  # The kernels' package by its installed name, whether it is installed or not.
  set(aot_path ${CMAKE_CURRENT_BINARY_DIR}/aot)
  file(MAKE_DIRECTORY ${aot_path}/echovlm_edge)
  get_filename_component(plugins ${CMAKE_CURRENT_LIST_DIR}/../.. ABSOLUTE)
  file(CREATE_LINK ${plugins} ${aot_path}/echovlm_edge/plugins SYMBOLIC)
  set(cuda_archive ${CMAKE_CURRENT_BINARY_DIR}/kernels.cubins)
  file(GLOB kernel_sources CONFIGURE_DEPENDS ${plugins}/dual_path_moe/cuda/*.py)
  if(ECHOVLM_SMS)
    set(architectures --sm ${ECHOVLM_SMS})
  endif()
  add_custom_command(
    OUTPUT ${cuda_archive}
    COMMAND ${CMAKE_COMMAND} -E env PYTHONPATH=${aot_path}:${python_packages} ${Python_EXECUTABLE} -m
            echovlm_edge.plugins.dual_path_moe.cuda.aot --output ${cuda_archive} ${architectures}
    DEPENDS ${kernel_sources}
    COMMENT "Compiling the CUDA kernels")
else()
  message(WARNING "Building without CUDA kernels, since triton is not installed (pip install 'echovlm-edge[cuda-kernels]'): \
${without_kernels}")
endif()
