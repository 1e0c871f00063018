# For the plugin on a Jetson, made on another machine (Debian: g++-aarch64-linux-gnu):
#
#     cmake -S plugins/dual_path_moe/tensorrt -B build/plugin-aarch64 --toolchain aarch64-linux-gnu.cmake
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

# What the build itself runs, and tests, where qemu-user is installed.
find_program(QEMU_AARCH64 qemu-aarch64)
if(QEMU_AARCH64)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${QEMU_AARCH64} -L /usr/aarch64-linux-gnu)
endif()
