// Memory asked for weights before their turn, where rows are read some at a time and of each a part of its bytes, from left to
// right: what comes a distance later lies farther on in the same rows or, past the part's end, in rows that follow. After all
// rows comes their next part, and after the last part other rows.
#pragma once

#include "float_product.hpp"
#include "kernels.hpp"

namespace echovlm {
namespace {

// What is read of every packed row, and how far ahead: groups of rows that are read together, and bytes in a row's part.
struct RowPart {
  std::size_t begin, bytes, rows, groups_ahead, bytes_ahead;
  bool last;

  RowPart() = default;
  RowPart(const BlockWeights& w, std::size_t begin, std::size_t bytes, std::size_t distance)
      : begin(begin),
        bytes(bytes),
        rows(w.rows),
        groups_ahead(distance / bytes),
        bytes_ahead(distance % bytes),
        last((begin + bytes) * 8 == w.k * static_cast<std::size_t>(w.bits)) {}

  struct Place {
    std::size_t row, begin;
  };

  // Where row `row` is, or what is read in its place where it is past the last.
  ECHOVLM_INLINE Place place(std::size_t row) const {
    if (row < rows) return {row, begin};
    return last ? Place{row, 0} : Place{row - rows, begin + bytes};
  }
};

template <class Isa>
class RowsAhead {
 public:
  // `count` rows read together from `row` on, from byte `at` of their part.
  ECHOVLM_INLINE RowsAhead(const BlockWeights& w, const RowPart& part, std::size_t row, std::size_t count, std::size_t at) {
    const auto near = part.place(row + part.groups_ahead * count), far = part.place(row + (part.groups_ahead + 1) * count);
    near_ = w.values + near.row * w.row_bytes + near.begin + at + part.bytes_ahead;
    far_ = w.values + far.row * w.row_bytes + far.begin + at + part.bytes_ahead - part.bytes;
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
