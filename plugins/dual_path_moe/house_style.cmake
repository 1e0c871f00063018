# How every library of this folder is compiled: C++17, nothing exported but what says so, sanitizers on request.
include_guard()

set(ECHOVLM_SANITIZER "" CACHE STRING "address,undefined or thread")
option(ECHOVLM_NATIVE_TESTS "Build tests/native" OFF)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

function(house_style target)
  set_target_properties(
    ${target}
    PROPERTIES CXX_STANDARD 17
               CXX_STANDARD_REQUIRED ON
               CXX_EXTENSIONS OFF
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               POSITION_INDEPENDENT_CODE ON)
  target_compile_options(${target} PRIVATE -Wall -Wextra)
  if(ECHOVLM_SANITIZER)
    target_compile_options(${target} PUBLIC -fsanitize=${ECHOVLM_SANITIZER} -fno-omit-frame-pointer -g1)
    target_link_options(${target} PUBLIC -fsanitize=${ECHOVLM_SANITIZER})
  endif()
endfunction()
