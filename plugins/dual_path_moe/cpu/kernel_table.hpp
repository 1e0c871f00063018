// Builds an instruction set's table of functions. Each file in arch/ includes this and is compiled with its own flags. Therefore
// everything is in unnamed namespaces and calls no inline library function, which the linker could share between those files.
#pragma once

#include "../../attention/cpu/attention_tiles.hpp"
#include "activations.hpp"
#include "block_product.hpp"
#include "block_rounding.hpp"

namespace echovlm {
namespace {

template <class Isa>
double peak(std::size_t rounds) {
  constexpr int independent = Isa::sums_in_flight;
  constexpr int products = 4 * independent;  // per round
  typename Isa::Int sums[independent];
  each<independent>([&](auto i) ECHOVLM_LAMBDA { sums[i.value] = Isa::no_partial(); });
  const auto word = Isa::set_bytes(1);
  constexpr std::size_t vector = 4 * Isa::lanes;
  alignas(64) std::uint8_t weights[products * vector];
  std::memset(weights, 3, sizeof weights);
  for (std::size_t round = 0; round < rounds; ++round) {
    asm volatile("" : : "r"(weights) : "memory");  // keeps the compiler from hoisting the products out of the loop
    each<products>([&](auto i) ECHOVLM_LAMBDA {
      constexpr int sum = i.value % independent;
      sums[sum] = Isa::template partial_dot<4>(sums[sum], Isa::load(weights + i.value * vector), word);
    });
  }
  auto total = Isa::broadcast(0.0f);
  each<independent>([&](auto i) ECHOVLM_LAMBDA { total = Isa::multiply_add(Isa::to_float(sums[i.value]), Isa::broadcast(1.0f), total); });
  volatile float kept = Isa::sum(total);
  static_cast<void>(kept);
  return 2.0 * vector * products * static_cast<double>(rounds);
}

template <class Isa>
std::uint64_t read(const std::uint8_t* data, std::size_t bytes) {
  constexpr std::size_t vector = 4 * Isa::lanes;
  auto a = Isa::set_bytes(0), b = a, c = a, d = a;
  for (std::size_t at = 0; at + 4 * vector <= bytes; at += 4 * vector) {
    a = Isa::either(a, Isa::load(data + at));
    b = Isa::either(b, Isa::load(data + at + vector));
    c = Isa::either(c, Isa::load(data + at + 2 * vector));
    d = Isa::either(d, Isa::load(data + at + 3 * vector));
  }
  alignas(64) std::uint8_t kept[vector];
  Isa::store(kept, Isa::either(Isa::either(a, b), Isa::either(c, d)));
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < vector; ++i) sum += kept[i];
  return sum;
}

template <class Isa, class Panel = TilePanel<Isa>>
constexpr Kernels table(const char* name, ByteAttentionKernels byte_attention = {}) {
  return {name,   block_product<Isa, Panel>, FloatProduct<Isa>::run,    quantize,
          swiglu, quick_gelu,                BlockRounding<Isa>::run, AttentionTiles<Isa>::table(byte_attention),
          peak<Isa>, read<Isa>};
}

}  // namespace
}  // namespace echovlm
