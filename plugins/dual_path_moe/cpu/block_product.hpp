// Multiplies block-wise quantized weights by int8 activations, for an instruction set `Isa`.
//
// Two ways through the same bytes, with the same order of sums:
//
//   rows               few tokens: row_product.hpp
//   panel              many tokens, and what is left over of few: tile_panel.hpp
#pragma once

#include "row_product.hpp"
#include "tile_panel.hpp"

namespace echovlm {
namespace {

template <class Isa, class Panel>
void block_product(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                   std::uint8_t* scratch) {
  using Rows = RowProduct<Isa>;
  constexpr std::size_t unit = Panel::kRows > Rows::kRows ? Panel::kRows : Rows::kRows;
  static_assert(unit % Panel::kRows == 0 && unit % Rows::kRows == 0);
  const bool few = list.count <= (w.bits == 4 ? Isa::template few_tokens<4> : Isa::template few_tokens<8>) && RowGroups<Isa>::takes(w);
  const std::size_t rows = few ? w.rows / unit * unit : 0;
  if (rows != 0) {
    if (w.bits == 4)
      Rows::template run<4>(some_rows(w, 0, rows), x, list, c, scratch);
    else
      Rows::template run<8>(some_rows(w, 0, rows), x, list, c, scratch);
  }
  if (rows == w.rows) return;
  const BlockWeights rest = some_rows(w, rows, w.rows - rows);
  if (w.bits == 4)
    panel_product<Panel, 4>(rest, x, list, {c.values + rows, c.stride}, scratch);
  else
    panel_product<Panel, 8>(rest, x, list, {c.values + rows, c.stride}, scratch);
}

}  // namespace
}  // namespace echovlm
