#include "kernel_call.hpp"

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

namespace echovlm {
namespace {

constexpr std::uintptr_t kPointerAlignment = 16;
constexpr unsigned kWarp = 32;

// Kernels stay loaded as long as their context exists: all layers of all engines share them.
cuda::Function loaded_function(const KernelRecord& record) {
  static std::mutex mutex;
  static std::map<std::pair<unsigned long long, const KernelRecord*>, cuda::Function> functions;
  const cuda::Driver& driver = cuda::Driver::instance();
  const std::pair key{driver.current_context(), &record};
  const std::lock_guard lock(mutex);
  if (const auto found = functions.find(key); found != functions.end()) return found->second;
  const cuda::Function function =
      driver.function(driver.load_module(record.cubin), record.entry.c_str(), record.shared_bytes);
  return functions[key] = function;
}

std::string capability(std::uint32_t sm) { return std::to_string(sm / 10) + "." + std::to_string(sm % 10); }

[[noreturn]] void refuse_device(const Archive& archive, std::uint32_t sm, const char* kernel) {
  std::string known;
  for (const std::uint32_t architecture : archive.architectures())
    known += (known.empty() ? "" : ", ") + capability(architecture);
  throw std::runtime_error(std::string("this library has no kernel ") + kernel +
                           " for these weights on a device of compute capability " + capability(sm) +
                           " (it was built for " + known + "): rebuild it for this device.");
}

}  // namespace

void Parameters::add_scratch() {
  const void* const scratch = nullptr;
  add_all(scratch, scratch);
}

void Parameters::add_value(std::uint64_t value) {
  values_.at(count_) = value;
  pointers_[count_] = &values_[count_];
  ++count_;
}

std::uint32_t current_sm() {
  const cuda::Driver& driver = cuda::Driver::instance();
  return static_cast<std::uint32_t>(10 * driver.device_attribute(cuda::kComputeCapabilityMajor) +
                                    driver.device_attribute(cuda::kComputeCapabilityMinor));
}

LoadedKernel load_kernel(const Archive& archive, std::uint32_t sm, const Variant& variant, const char* kernel,
                         std::uint32_t tile_tokens) {
  const KernelRecord* const record = archive.find(kernel, sm, variant, tile_tokens);
  if (!record) refuse_device(archive, sm, kernel);
  return {record, loaded_function(*record)};
}

void launch_kernel(const LoadedKernel& kernel, Grid grid, Parameters& parameters, cuda::Stream stream) {
  const KernelRecord& record = *kernel.record;
  if (parameters.count() != record.parameters)
    throw std::runtime_error("kernel " + record.kernel + " takes " + std::to_string(record.parameters) +
                             " parameters, and this library gives it " + std::to_string(parameters.count()) + ".");
  cuda::Driver::instance().launch(kernel.function, grid.x, grid.y, kWarp * record.num_warps, record.shared_bytes,
                                  stream, parameters.pointers());
}

void check_aligned(const void* tensor, const char* name) {
  if (reinterpret_cast<std::uintptr_t>(tensor) % kPointerAlignment != 0)
    throw std::runtime_error(std::string(name) + " is not aligned to 16 bytes.");
}

}  // namespace echovlm
