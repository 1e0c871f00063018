// Reads the archive of cubins in place, and selects kernels from it, as ../cuda/README.md specifies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace echovlm {

// One kernel of one architecture.
struct KernelRecord {
  std::string kernel;  // its name in the contract: route, gate_up_decode, ...
  std::string entry;   // its symbol in the cubin
  std::uint32_t sm, activation, bits, block_size, experts_limit;
  std::uint32_t tile_tokens, tile_rows, tile_depth;
  std::uint32_t num_warps, shared_bytes, registers, parameters;
  const std::uint8_t* cubin;
  std::size_t cubin_bytes;
};

constexpr std::uint32_t kAny = 0xFFFFFFFF;  // of activation, bits and block_size
constexpr std::uint32_t kFloat16 = 0, kBFloat16 = 1;

// The properties by which a launch selects kernels from an archive.
struct Variant {
  std::uint32_t activation;  // kFloat16 or kBFloat16
  std::uint32_t bits, block_size, experts;
};

class Archive {
 public:
  // `data` must outlive the archive. Throws std::invalid_argument if it is not an archive, is truncated or has a later version.
  Archive(const std::uint8_t* data, std::size_t bytes);

  const std::vector<KernelRecord>& records() const { return records_; }

  // Finds the record named `kernel` for the variant and a device of compute capability `sm` / 10, with `tile_tokens` unless that is 0.
  // If there are several, returns the one with the smallest experts_limit; null if there is none.
  const KernelRecord* find(const std::string& kernel, std::uint32_t sm, const Variant& variant,
                           std::uint32_t tile_tokens = 0) const;

  // Returns the distinct tile_tokens of gate_up_prefill for the variant, ascending: for all devices, or for capability `sm` / 10.
  std::vector<std::uint32_t> prefill_tiles(const Variant& variant) const;
  std::vector<std::uint32_t> prefill_tiles(const Variant& variant, std::uint32_t sm) const;

  // Returns the architectures of its kernels, ascending.
  std::vector<std::uint32_t> architectures() const;

  // Returns the architecture whose cubins a device of capability `sm` / 10 runs; 0 if there is none.
  std::uint32_t architecture_for(std::uint32_t sm) const;

 private:
  std::vector<KernelRecord> records_;
};

}  // namespace echovlm
