#include "archive.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>

namespace echovlm {
namespace {

constexpr char kMagic[] = "ECHOCUBN";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kHeaderBytes = 64, kRecordBytes = 192, kKernelBytes = 32, kEntryBytes = 64;
constexpr std::uint32_t kFirstExactSm = 90;  // from this version on a cubin runs only on its own architecture

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument("The archive of CUDA kernels " + sentence); }

template <class Integer>
Integer read(const std::uint8_t* at) {
  Integer value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

std::string read_text(const std::uint8_t* at, std::size_t bytes) {
  const void* const end = std::memchr(at, 0, bytes);
  if (!end) refuse("is damaged: a name does not end.");
  return {reinterpret_cast<const char*>(at), static_cast<std::size_t>(static_cast<const std::uint8_t*>(end) - at)};
}

KernelRecord read_record(const std::uint8_t* data, std::size_t bytes, const std::uint8_t* at) {
  KernelRecord record{};
  record.kernel = read_text(at, kKernelBytes);
  record.entry = read_text(at + kKernelBytes, kEntryBytes);
  std::uint32_t* const numbers[] = {&record.sm,        &record.activation,   &record.bits,      &record.block_size,
                                    &record.experts_limit, &record.tile_tokens, &record.tile_rows, &record.tile_depth,
                                    &record.num_warps, &record.shared_bytes, &record.registers, &record.parameters};
  const std::uint8_t* next = at + kKernelBytes + kEntryBytes;
  for (std::uint32_t* number : numbers) {
    *number = read<std::uint32_t>(next);
    next += sizeof(std::uint32_t);
  }
  const auto offset = read<std::uint64_t>(next), size = read<std::uint64_t>(next + sizeof(std::uint64_t));
  if (offset > bytes || size > bytes - offset || size == 0) refuse("is damaged: " + record.kernel + " lies outside of it.");
  if (record.tile_tokens == 0 || record.tile_rows == 0 || record.num_warps == 0)
    refuse("is damaged: " + record.kernel + " has an empty tile.");
  record.cubin = data + offset;
  record.cubin_bytes = size;
  return record;
}

bool serves(std::uint32_t recorded, std::uint32_t wanted) { return recorded == kAny || recorded == wanted; }

bool serves(const KernelRecord& record, const Variant& variant) {
  return serves(record.activation, variant.activation) && serves(record.bits, variant.bits) &&
         serves(record.block_size, variant.block_size) && record.experts_limit >= variant.experts;
}

}  // namespace

Archive::Archive(const std::uint8_t* data, std::size_t bytes) {
  if (bytes < kHeaderBytes || std::memcmp(data, kMagic, sizeof kMagic - 1) != 0) refuse("is not one.");
  const auto version = read<std::uint32_t>(data + 8), count = read<std::uint32_t>(data + 12);
  const auto record_bytes = read<std::uint32_t>(data + 16), first = read<std::uint32_t>(data + 20);
  if (version != kVersion)
    refuse("has version " + std::to_string(version) + ", and this library reads version " + std::to_string(kVersion) + ".");
  if (read<std::uint64_t>(data + 24) != bytes) refuse("is cut short.");
  if (record_bytes != kRecordBytes || first > bytes || count > (bytes - first) / kRecordBytes)
    refuse("is damaged: its records lie outside of it.");
  records_.reserve(count);
  for (std::uint32_t i = 0; i < count; ++i) records_.push_back(read_record(data, bytes, data + first + i * kRecordBytes));
}

std::uint32_t Archive::architecture_for(std::uint32_t sm) const {
  std::uint32_t best = 0;
  for (const KernelRecord& record : records_) {
    if (record.sm == sm) return sm;
    if (sm < kFirstExactSm && record.sm / 10 == sm / 10 && record.sm < sm) best = std::max(best, record.sm);
  }
  return best;
}

const KernelRecord* Archive::find(const std::string& kernel, std::uint32_t sm, const Variant& variant,
                                  std::uint32_t tile_tokens) const {
  const std::uint32_t architecture = architecture_for(sm);
  const KernelRecord* best = nullptr;
  for (const KernelRecord& record : records_)
    if (record.sm == architecture && record.kernel == kernel && serves(record, variant) &&
        (tile_tokens == 0 || record.tile_tokens == tile_tokens) &&
        (!best || record.experts_limit < best->experts_limit))
      best = &record;
  return best;
}

std::vector<std::uint32_t> Archive::prefill_tiles(const Variant& variant) const {
  std::set<std::uint32_t> tiles;
  for (const std::uint32_t architecture : architectures())
    for (const std::uint32_t tile : prefill_tiles(variant, architecture)) tiles.insert(tile);
  return {tiles.begin(), tiles.end()};
}

std::vector<std::uint32_t> Archive::prefill_tiles(const Variant& variant, std::uint32_t sm) const {
  const std::uint32_t architecture = architecture_for(sm);
  std::set<std::uint32_t> tiles;
  for (const KernelRecord& record : records_)
    if (record.sm == architecture && record.kernel == "gate_up_prefill" && serves(record, variant))
      tiles.insert(record.tile_tokens);
  return {tiles.begin(), tiles.end()};
}

std::vector<std::uint32_t> Archive::architectures() const {
  std::set<std::uint32_t> found;
  for (const KernelRecord& record : records_) found.insert(record.sm);
  return {found.begin(), found.end()};
}

}  // namespace echovlm
