#!/bin/sh
# The native operators and the GPU's launcher under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer; the
# TensorRT plugin under the former. A stand-in for CUDA's driver is in the GPU's place.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$(test -x "$root/.venv/bin/python" && echo "$root/.venv/bin/python" || command -v python3)  # may hold TensorRT's headers
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1
for sanitizer in address,undefined thread; do
  build="$root/build/native-operators-$(echo "$sanitizer" | tr ',' '-')"
  cmake -S "$root/plugins/dual_path_moe/onnxruntime" -B "$build" -DECHOVLM_SANITIZER="$sanitizer" -DECHOVLM_NATIVE_TESTS=ON >/dev/null
  cmake --build "$build" --parallel 2 >/dev/null
  echo "== $sanitizer"
  "$build/cpu/kernel_driver"
  LD_LIBRARY_PATH="$build/double" "$build/cuda_kernel_driver"
done

build="$root/build/native-plugin"
cmake -S "$root/plugins/dual_path_moe/tensorrt" -B "$build" -DPython_EXECUTABLE="$python" -DECHOVLM_SANITIZER=address,undefined \
  -DECHOVLM_NATIVE_TESTS=ON >/dev/null
cmake --build "$build" --parallel 2 >/dev/null
echo "== plugin, address,undefined"
LD_LIBRARY_PATH="$build/double" "$build/plugin_driver"
ldconfig -p 2>/dev/null | grep -q libcuda.so.1 || "$build/plugin_driver" no-driver
