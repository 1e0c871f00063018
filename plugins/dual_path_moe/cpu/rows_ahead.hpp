// Memory asked for weights before their turn, where rows are read some at a time and of each a part of its bytes, from left to
// right: what comes a distance later lies farther on in the same rows or, past the part's end, in rows that follow. After all
// rows comes their next part, and after the last part the next product.
#pragma once

#include "float_product.hpp"
#include "kernels.hpp"

namespace echovlm {
namespace {

// What is read of every packed row, and how far ahead: groups of rows that are read together, and bytes in a row's part.
struct RowPart {
  std::size_t begin, bytes, groups_ahead, bytes_ahead;
  const std::uint8_t* values_after;  // where reading continues when all rows have been read
  const void* scales_after;

  RowPart() = default;
  RowPart(const BlockWeights& w, std::size_t begin, std::size_t bytes, std::size_t distance)
      : begin(begin), bytes(bytes), groups_ahead(distance / bytes), bytes_ahead(distance % bytes) {
    const std::size_t end = begin + bytes, k = end * 8 / static_cast<std::size_t>(w.bits);
    const std::size_t scales = k / w.block * (w.half_scales ? 2 : 4);
    values_after = k == w.k ? w.next_values : w.values + end;
    scales_after = k == w.k ? w.next_scales : static_cast<const std::uint8_t*>(w.scales) + scales;
  }

  // Where row `row` is, or what is read in its place where it is past the last.
  ECHOVLM_INLINE const std::uint8_t* values(const BlockWeights& w, std::size_t row) const {
    return row < w.rows ? w.values + row * w.row_bytes + begin : values_after + (row - w.rows) * w.row_bytes;
  }

  // Its scales, that of block `first_block` where it is one of the rows.
  template <class Scale>
  ECHOVLM_INLINE const Scale* scales(const BlockWeights& w, std::size_t row, std::size_t first_block) const {
    return row < w.rows ? static_cast<const Scale*>(w.scales) + row * w.scale_stride + first_block
                        : static_cast<const Scale*>(scales_after) + (row - w.rows) * w.scale_stride;
  }
};

template <class Isa>
class RowsAhead {
 public:
  // `count` rows read together from `row` on, from byte `at` of their part.
  ECHOVLM_INLINE RowsAhead(const BlockWeights& w, const RowPart& part, std::size_t row, std::size_t count, std::size_t at) {
    near_ = part.values(w, row + part.groups_ahead * count) + at + part.bytes_ahead;
    far_ = part.values(w, row + (part.groups_ahead + 1) * count) + at + part.bytes_ahead - part.bytes;
    near_bytes_ = static_cast<std::ptrdiff_t>(part.bytes) - static_cast<std::ptrdiff_t>(at + part.bytes_ahead);
  }

  // Asks for what is read a distance after the line `at` bytes on, `offset` bytes behind the first row.
  ECHOVLM_INLINE void ask(std::size_t offset, std::size_t at) const {
    __builtin_prefetch((static_cast<std::ptrdiff_t>(at) < near_bytes_ ? near_ : far_) + offset + at, 0, Isa::prefetch_level);
  }

 private:
  const std::uint8_t *near_, *far_;
  std::ptrdiff_t near_bytes_;
};

}  // namespace
}  // namespace echovlm
