// Writes an archive in the layout of ../../plugins/dual_path_moe/cuda/README.md, whose "cubins" are the names of their own entries.
//
// An entry is kernel_activation_bits_tile_PARAMETERS: the last word spells the kernel's parameters, p a pointer and i an i32, as
// the README's table does, so that cuda_driver_double.cpp can read them.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

struct RecordForTests {
  std::string kernel, parameters;
  std::uint32_t sm, activation, bits, block_size, experts_limit, tile_tokens, tile_rows, shared_bytes;

  std::string entry() const {
    return kernel + "_" + std::to_string(sm) + "_" + std::to_string(activation) + "_" + std::to_string(experts_limit) + "_" +
           std::to_string(tile_tokens) + "_" + parameters;
  }
};

inline std::vector<RecordForTests> records_for_tests(std::uint32_t sm) {
  constexpr std::uint32_t any = 0xFFFFFFFF;
  std::vector<RecordForTests> records{{"sort", "pppiipp", sm, any, any, any, 64, 1, 1024, 0}};
  for (std::uint32_t activation = 0; activation < 2; ++activation) {
    records.push_back({"route", "ppppppiiiipp", sm, activation, any, any, 64, 1, 1, 0});
    records.push_back({"route", "ppppppiiiipp", sm, activation, any, any, 8, 1, 1, 0});
    records.push_back({"sum_parts", "ppiipp", sm, activation, any, any, 64, 1, 1024, 0});
    for (const auto& [bits, block] : {std::pair{0u, 0u}, {4u, 64u}, {4u, 128u}}) {
      records.push_back({"gate_up_decode", "pppppppiiiiiipp", sm, activation, bits, block, 64, 16, 32, 16384});
      records.push_back({"down_decode", "pppppiiiiiiipp", sm, activation, bits, block, 64, 16, 32, 16384});
      for (const std::uint32_t tile : {64u, 128u}) {
        records.push_back({"gate_up_prefill", "pppppppppiiiiiipp", sm, activation, bits, block, 64, tile, 64, 65536});
        records.push_back({"down_prefill", "ppppppiiiiiiipp", sm, activation, bits, block, 64, tile, 64, 65536});
      }
    }
  }
  for (const std::uint32_t block : {64u, 128u})
    records.push_back({"linear", "ppppiiipp", sm, any, 8, block, 64, 16, 32, 24576});
  return records;
}

inline std::vector<std::uint8_t> archive_for_tests(const std::vector<RecordForTests>& records) {
  constexpr std::size_t header = 64, record_bytes = 192, cubin_bytes = 128;
  const std::size_t cubins = (header + records.size() * record_bytes + 63) / 64 * 64;
  std::vector<std::uint8_t> archive(cubins + records.size() * cubin_bytes);
  const auto text = [&](std::size_t at, const std::string& value) { std::memcpy(&archive[at], value.data(), value.size()); };
  const auto u32 = [&](std::size_t at, std::uint32_t value) { std::memcpy(&archive[at], &value, sizeof value); };
  const auto u64 = [&](std::size_t at, std::uint64_t value) { std::memcpy(&archive[at], &value, sizeof value); };
  text(0, "ECHOCUBN");
  u32(8, 1);
  u32(12, static_cast<std::uint32_t>(records.size()));
  u32(16, record_bytes);
  u32(20, header);
  u64(24, archive.size());
  for (std::size_t i = 0; i < records.size(); ++i) {
    const RecordForTests& record = records[i];
    const std::size_t at = header + i * record_bytes, cubin = cubins + i * cubin_bytes;
    text(at, record.kernel);
    text(at + 32, record.entry());
    const std::uint32_t numbers[] = {record.sm, record.activation, record.bits, record.block_size, record.experts_limit,
                                     record.tile_tokens, record.tile_rows, 64, 4, record.shared_bytes, 100,
                                     static_cast<std::uint32_t>(record.parameters.size())};
    for (std::size_t n = 0; n < 12; ++n) u32(at + 96 + 4 * n, numbers[n]);
    u64(at + 144, cubin);
    u64(at + 152, cubin_bytes);
    text(cubin, record.entry());
  }
  return archive;
}
