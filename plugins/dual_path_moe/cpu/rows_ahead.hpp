// Prefetches weights a fixed distance ahead, for products that read a part of each row's bytes, some rows (a group) at a time:
//
//   group 0:  | .... part .... |          what is read `distance` bytes later is farther right in the same rows (`near`)
//   group 1:  | .... part .... |          or, past the end of the part, in a following group (`far`)
//
// After the last row comes the first row's next part, and after the last part the next product.
#pragma once

#include "float_product.hpp"
#include "kernels.hpp"

namespace echovlm {
namespace {

// The part of each packed row that is read, and the prefetch distance as groups of rows plus bytes within a part.
struct RowPart {
  std::size_t begin, bytes, groups_ahead, bytes_ahead;
  const std::uint8_t* values_after;  // what is read after all rows
  const void* scales_after;

  RowPart() = default;
  RowPart(const BlockWeights& w, std::size_t begin, std::size_t bytes, std::size_t distance)
      : begin(begin), bytes(bytes), groups_ahead(distance / bytes), bytes_ahead(distance % bytes) {
    const std::size_t end = begin + bytes, k = end * 8 / static_cast<std::size_t>(w.bits);
    const std::size_t scales = k / w.block * (w.half_scales ? 2 : 4);
    values_after = k == w.k ? w.next_values : w.values + end;
    scales_after = k == w.k ? w.next_scales : static_cast<const std::uint8_t*>(w.scales) + scales;
  }

  // Returns the address of row `row`, or of what is read after the last row.
  ECHOVLM_INLINE const std::uint8_t* values(const BlockWeights& w, std::size_t row) const {
    return row < w.rows ? w.values + row * w.row_bytes + begin : values_after + (row - w.rows) * w.row_bytes;
  }

  // Returns the address of its scales, from block `first_block` on if it is one of the rows.
  template <class Scale>
  ECHOVLM_INLINE const Scale* scales(const BlockWeights& w, std::size_t row, std::size_t first_block) const {
    return row < w.rows ? static_cast<const Scale*>(w.scales) + row * w.scale_stride + first_block
                        : static_cast<const Scale*>(scales_after) + (row - w.rows) * w.scale_stride;
  }
};

template <class Isa>
class RowsAhead {
 public:
  // For `count` rows that are read together, from row `row` and byte `at` of their part on.
  ECHOVLM_INLINE RowsAhead(const BlockWeights& w, const RowPart& part, std::size_t row, std::size_t count, std::size_t at) {
    near_ = part.values(w, row + part.groups_ahead * count) + at + part.bytes_ahead;
    far_ = part.values(w, row + (part.groups_ahead + 1) * count) + at + part.bytes_ahead - part.bytes;
    near_bytes_ = static_cast<std::ptrdiff_t>(part.bytes) - static_cast<std::ptrdiff_t>(at + part.bytes_ahead);
  }

  // Prefetches what will be read one distance after byte `at` of the row that starts `offset` bytes after the first one.
  ECHOVLM_INLINE void ask(std::size_t offset, std::size_t at) const {
    __builtin_prefetch((static_cast<std::ptrdiff_t>(at) < near_bytes_ ? near_ : far_) + offset + at, 0, Isa::prefetch_level);
  }

 private:
  const std::uint8_t *near_, *far_;
  std::ptrdiff_t near_bytes_;
};

}  // namespace
}  // namespace echovlm
