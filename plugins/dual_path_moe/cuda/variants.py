"""List the kernels to compile, with their types, constants and launch options."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from echovlm_edge.plugins.dual_path_moe.cuda import down, gate_up, linear, routing
from echovlm_edge.plugins.dual_path_moe.cuda.planner import DECODE_TOKENS, MOST_EXPERTS

ANY = 0xFFFFFFFF  # in a record: any value
ACTIVATIONS = ("fp16", "bf16")  # Triton's names, in the order of the archive's numbers
WEIGHTS = ((0, 0), (4, 64), (4, 128))  # bits, block_size
LINEAR_WEIGHTS = ((8, 64), (8, 128))
DEPTH = 64  # values of K per step, unless a step is a block

# Parameters in order; "act" is x's type, "weight" that of the matrices.
SIZES = dict.fromkeys(("tokens", "hidden", "dense", "shared", "expert", "experts"), "i32")
PARAMETERS: dict[str, dict[str, str]] = {
    "route": {
        **dict.fromkeys(("x", "router", "shared_gate", "coefficient", "coefficient_bias"), "*act"),
        "group_weights": "*fp32",
        **dict.fromkeys(("hidden", "experts", "top_k", "norm_topk_prob"), "i32"),
    },
    "sort": {
        "group_weights": "*fp32",
        "expert_tokens": "*i32",
        "expert_counts": "*i32",
        "tokens": "i32",
        "experts": "i32",
    },
    "gate_up_decode": {
        "x": "*act",
        "gate": "*weight",
        "up": "*weight",
        "gate_scale": "*fp32",
        "up_scale": "*fp32",
        "group_weights": "*fp32",
        "inner": "*act",
        **SIZES,
    },
    "gate_up_prefill": {
        "x": "*act",
        "gate": "*weight",
        "up": "*weight",
        "gate_scale": "*fp32",
        "up_scale": "*fp32",
        "group_weights": "*fp32",
        "expert_tokens": "*i32",
        "expert_counts": "*i32",
        "inner": "*act",
        **SIZES,
    },
    "down_decode": {
        "inner": "*act",
        "down": "*weight",
        "down_scale": "*fp32",
        "group_weights": "*fp32",
        "parts": "*fp32",
        **SIZES,
        "splits": "i32",
    },
    "sum_parts": {"parts": "*fp32", "y": "*act", "elements": "i32", "splits": "i32"},
    "down_prefill": {
        "inner": "*act",
        "down": "*weight",
        "down_scale": "*fp32",
        "group_weights": "*fp32",
        "parts": "*fp32",
        "y": "*act",
        **SIZES,
        "splits": "i32",
    },
    "linear": {
        "x": "*fp32",
        "weight": "*weight",
        "scale": "*fp32",
        "y": "*fp32",
        **dict.fromkeys(("tokens", "inputs", "outputs"), "i32"),
    },
}
FUNCTIONS: dict[str, Any] = {
    name: getattr(module, name)
    for module, names in (
        (routing, ("route", "sort")),
        (gate_up, ("gate_up_decode", "gate_up_prefill")),
        (down, ("down_decode", "sum_parts", "down_prefill")),
        (linear, ("linear",)),
    )
    for name in names
}
# Known divisors of sizes, from which the compiler can prove that 16-byte loads are aligned.
DIVISORS = {"hidden": 64, "dense": 64, "shared": 64, "expert": 64, "elements": 64, "inputs": 64}
POINTER_ALIGNMENT = 16


@dataclass(frozen=True)
class Variant:
    """One compilation of a kernel, for any device: the properties in its archive record, without sizes.

    `activation` is an index into ACTIVATIONS; `activation`, `bits` and `block_size` may be ANY.
    """

    kernel: str
    activation: int
    bits: int
    block_size: int
    tile_tokens: int
    tile_rows: int
    tile_depth: int
    num_warps: int
    num_stages: int  # software-pipelining stages; reduced by one if registers run out
    experts_limit: int = MOST_EXPERTS

    @property
    def label(self) -> str:
        """A name for people: kernel, types and tile."""
        activation = "" if self.activation == ANY else f" {ACTIVATIONS[self.activation]}"
        weights = {ANY: "", 0: " float"}.get(self.bits, f" int{self.bits}/{self.block_size}")
        return f"{self.kernel}{activation}{weights} {self.tile_tokens}x{self.tile_rows}x{self.tile_depth}"

    @property
    def multiplies_weights(self) -> bool:
        """Whether it reads gate, up or down."""
        return "*weight" in PARAMETERS[self.kernel].values()

    @property
    def signature(self) -> dict[str, str]:
        """Triton's type of every argument, constants included."""
        activation = ACTIVATIONS[0 if self.activation == ANY else self.activation]
        names = {"*act": f"*{activation}", "*weight": "*i8" if self.bits in (4, 8) else f"*{activation}"}
        parameters = {name: names.get(kind, kind) for name, kind in PARAMETERS[self.kernel].items()}
        return parameters | dict.fromkeys(self.constants, "constexpr")

    @property
    def constants(self) -> dict[str, int]:
        """The values of the constants in capitals."""
        if self.kernel == "route":
            return {"EXPERTS": self.experts_limit, "DEPTH": self.tile_depth}
        if self.kernel in ("sort", "sum_parts"):
            return {"ROWS": self.tile_rows}
        return {
            "BITS": self.bits,
            "BLOCK": self.block_size,
            "TOKENS": self.tile_tokens,
            "ROWS": self.tile_rows,
            "DEPTH": self.tile_depth,
        }

    @property
    def hints(self) -> dict[tuple[int], list[list[Any]]]:
        """Alignment of pointers and divisors of sizes, by the argument's place."""
        known = {}
        for place, (name, kind) in enumerate(PARAMETERS[self.kernel].items()):
            divisor = POINTER_ALIGNMENT if kind.startswith("*") else DIVISORS.get(name)
            if divisor:
                known[(place,)] = [["tt.divisibility", divisor]]
        return known


# The products' tiles: rows of gate and of up, rows of down, values of K per step, warps, pipeline stages. These were the fastest at
# the published width on SM 90, the only generation that was available; cuda/README.md says what else was tried.
DECODE_TILES = {"int4": (16, 32, None, 2, 3), "float": (64, 64, DEPTH, 4, 3)}  # a step of 4-bit weights is a block
PREFILL_TILES = {"int4": (32, 64, DEPTH, 4, 3), "float": (64, 64, DEPTH, 4, 3)}
LINEAR_TILE = (32, 2, 3)  # rows, warps, pipeline stages; a step is a block. Not measured on a GPU yet
PREFILL_TOKENS = (32, 64)
MORE_TOKENS = {90: (128,)}  # if the registers suffice


def variants(sm: int) -> Iterator[Variant]:
    """List all variants for one device, in the archive's order."""
    for activation in range(len(ACTIVATIONS)):
        for experts_limit, values in ((8, 2048), (MOST_EXPERTS, 256)):
            yield Variant("route", activation, ANY, ANY, 1, 1, values, 16, 1, experts_limit)
    yield Variant("sort", ANY, ANY, ANY, 1, 1024, 1, 4, 1)
    for activation in range(len(ACTIVATIONS)):
        yield Variant("sum_parts", activation, ANY, ANY, 1, 1024, 1, 4, 1)
        for bits, block_size in WEIGHTS:
            kind = "int4" if bits else "float"
            sets = [("decode", DECODE_TOKENS, DECODE_TILES[kind])]
            sets += [("prefill", tokens, PREFILL_TILES[kind]) for tokens in (*PREFILL_TOKENS, *MORE_TOKENS.get(sm, ()))]
            for phase, tokens, (gate_up_rows, down_rows, depth, warps, stages) in sets:
                for kernel, rows in (("gate_up", gate_up_rows), ("down", down_rows)):
                    tile = (tokens, rows, depth or block_size, warps, stages)
                    yield Variant(f"{kernel}_{phase}", activation, bits, block_size, *tile)
    for bits, block_size in LINEAR_WEIGHTS:
        rows, warps, stages = LINEAR_TILE
        yield Variant("linear", ANY, bits, block_size, DECODE_TOKENS, rows, block_size, warps, stages)
