#!/bin/sh
# The native operators under AddressSanitizer with UndefinedBehaviorSanitizer, then under ThreadSanitizer; the TensorRT plugin
# under the former.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
for sanitizer in address,undefined thread; do
  build="$root/build/native-$(echo "$sanitizer" | tr ',' '-')"
  cmake -S "$root/plugins/dual_path_moe/cpu" -B "$build" -DECHOVLM_SANITIZER="$sanitizer" -DECHOVLM_NATIVE_TESTS=ON >/dev/null
  cmake --build "$build" --parallel 2 >/dev/null
  echo "== $sanitizer"
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 "$build/kernel_driver"
done

# The TensorRT plugin, with a stand-in for CUDA's driver.
build="$root/build/native-plugin"
python=$(test -x "$root/.venv/bin/python" && echo "$root/.venv/bin/python" || command -v python3)  # may hold TensorRT's headers
cmake -S "$root/plugins/dual_path_moe/tensorrt" -B "$build" -DPython_EXECUTABLE="$python" -DECHOVLM_SANITIZER=address,undefined \
  -DECHOVLM_NATIVE_TESTS=ON >/dev/null
cmake --build "$build" --parallel 2 >/dev/null
echo "== plugin, address,undefined"
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
LD_LIBRARY_PATH="$build/double" "$build/plugin_driver"
ldconfig -p 2>/dev/null | grep -q libcuda.so.1 || "$build/plugin_driver" no-driver
