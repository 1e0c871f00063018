// Multiplies block-wise quantized weights by int8 activations, for an instruction set `Isa`.
//
// Chooses one of three algorithms over the same packed weights:
//
//   rows               few tokens: row_product.hpp
//   interleaved rows   few tokens, if the instruction set sets `interleaves_rows`: interleaved_rows.hpp
//   panel              many tokens, and the rows that do not fill a group of interleaved rows: tile_panel.hpp
#pragma once

#include "interleaved_rows.hpp"
#include "row_product.hpp"
#include "tile_panel.hpp"

namespace echovlm {
namespace {

template <class Isa, class Panel>
void block_product(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                   std::uint8_t* scratch) {
  if constexpr (Isa::interleaves_rows) {
    using Interleaved = InterleavedRows<Isa>;
    static_assert(Panel::kRows % Interleaved::kRows == 0);
    const bool few = list.count <= Isa::few_tokens && Interleaved::takes(w);
    const std::size_t rows = few ? w.rows / Panel::kRows * Panel::kRows : 0;
    if (rows != 0) {
      if (w.bits == 4)
        Interleaved::template run<4>(some_rows(w, 0, rows), x, list, c, scratch);
      else
        Interleaved::template run<8>(some_rows(w, 0, rows), x, list, c, scratch);
    }
    if (rows != w.rows)
      panel_product<Panel>(some_rows(w, rows, w.rows - rows), x, list, {c.values + rows, c.stride}, scratch);
  } else {
    if constexpr (Isa::few_tokens != kAnyNumber) {
      if (list.count > Isa::few_tokens) return panel_product<Panel>(w, x, list, c, scratch);
    }
    if (w.bits == 4)
      RowProduct<Isa>::template run<4>(w, x, list, c, scratch);
    else
      RowProduct<Isa>::template run<8>(w, x, list, c, scratch);
  }
}

}  // namespace
}  // namespace echovlm
