// The product of block-wise quantized weights with int8 activations, over an instruction set `Isa`.
//
// Three ways through the same bytes:
//
//   interleaved rows   few tokens, where an instruction set says so: interleaved_rows.hpp
//   rows               few tokens, and what is left over of the way above: row_product.hpp
//   panel              many tokens: tile_panel.hpp
#pragma once

#include "interleaved_rows.hpp"
#include "row_product.hpp"
#include "tile_panel.hpp"

namespace echovlm {
namespace {

template <class Isa, int Bits>
void few_tokens_product(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                        std::uint8_t* scratch) {
  std::size_t done = 0;  // rows
  if constexpr (Isa::least_tokens_of_interleaved_rows != kAnyNumber) {
    using Interleaved = InterleavedRows<Isa>;
    if (list.count >= Isa::least_tokens_of_interleaved_rows && Interleaved::takes(w)) {
      done = w.rows / Interleaved::kRows * Interleaved::kRows;
      Interleaved::template run<Bits>(some_rows(w, 0, done), x, list, c, scratch);
    }
  }
  if (done < w.rows)
    RowProduct<Isa>::template run<Bits>(some_rows(w, done, w.rows - done), x, list, {c.values + done, c.stride}, scratch);
}

template <class Isa, class Panel>
void block_product(const BlockWeights& w, const QuantizedTokens& x, const TokenList& list, const Accumulator& c,
                   std::uint8_t* scratch) {
  if constexpr (Isa::few_tokens != kAnyNumber) {
    if (list.count > Isa::few_tokens) return panel_product<Panel>(w, x, list, c, scratch);
  }
  if (w.bits == 4)
    few_tokens_product<Isa, 4>(w, x, list, c, scratch);
  else
    few_tokens_product<Isa, 8>(w, x, list, c, scratch);
}

}  // namespace
}  // namespace echovlm
