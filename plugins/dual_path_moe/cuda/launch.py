"""Run a plan with Triton's own launcher: on a GPU, or on the CPU where TRITON_INTERPRET=1 was set before Triton was imported.

What serves launches cubins; this is for comparing the kernels with `reference.py`, wherever a person can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from echovlm_edge.plugins.dual_path_moe.cuda.planner import Plan, Shape, Tile, plan_decode, plan_linear, plan_prefill
from echovlm_edge.plugins.dual_path_moe.cuda.variants import ACTIVATIONS, ANY, FUNCTIONS, PARAMETERS, Variant, variants

POISON = 0xFF  # NaN in every floating type if all bytes are this one, -1 as an index


@dataclass(frozen=True)
class Operands:
    """The operator's inputs: x, the router and the gates float32 (rounded to the activation's type here), weights as stored.

    With `bits` 0 the weights are float32 and rounded likewise; with 4 they are packed INT8 with float32 scales.
    """

    x: NDArray[np.float32]
    router: NDArray[np.float32]
    shared_gate: NDArray[np.float32]
    coefficient: NDArray[np.float32]
    coefficient_bias: NDArray[np.float32]
    gate: NDArray[Any]
    up: NDArray[Any]
    down: NDArray[Any]
    gate_scale: NDArray[np.float32] | None = None
    up_scale: NDArray[np.float32] | None = None
    down_scale: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Tactic:
    """The kernels to run: decode (`tile_tokens` 16) or a prefill tile, of which device's set, for how many multiprocessors."""

    activation: str
    tile_tokens: int
    sm: int = 90  # the set that has every tile
    multiprocessors: int = 16


def run(
    operands: Operands, shape: Shape, tactic: Tactic, norm_topk_prob: bool = False, device: str = "cpu"
) -> NDArray[np.float32]:
    """Run the operator; returns its output [n, H], widened to float32. Workspace and output are poisoned before the first kernel.

    Raises:
        ValueError: the tactic does not take so many tokens.
    """
    activation = {"fp16": torch.float16, "bf16": torch.bfloat16}[tactic.activation]
    tensors = {
        name: _tensor(value, activation, name.endswith("_scale")).to(device)
        for name, value in vars(operands).items()
        if value is not None
    }
    tokens = len(operands.x)

    def chosen(kernel: str) -> Variant:
        return choose(kernel, shape, tactic)

    def tile_of(kernel: str) -> Tile:
        return Tile(chosen(kernel).tile_tokens, chosen(kernel).tile_rows)

    if tactic.tile_tokens == 16:
        plan = plan_decode(tokens, shape, tactic.multiprocessors, tile_of, norm_topk_prob)
    else:
        plan = plan_prefill(tokens, shape, tactic.multiprocessors, tile_of, norm_topk_prob)
    tensors |= _workspace(plan, activation, device)
    tensors["y"] = torch.full((tokens, 2 * shape.hidden), POISON, dtype=torch.uint8, device=device).view(activation)
    for launch in plan.launches:
        variant = chosen(launch.kernel)
        pointers = [name for name, kind in PARAMETERS[launch.kernel].items() if kind.startswith("*")]
        arguments = [
            tensors.get(name, tensors["group_weights"]) for name in pointers
        ]  # a scale without 4-bit weights: never read
        FUNCTIONS[launch.kernel][launch.grid](
            *arguments,
            *launch.scalars,
            **variant.constants,
            num_warps=variant.num_warps,
            num_stages=variant.num_stages,
        )
    whole: NDArray[np.float32] = tensors["y"].float().cpu().numpy()
    return whole


def run_linear(
    x: NDArray[np.float32], weight: NDArray[np.int8], scale: NDArray[np.float32], sm: int = 90, device: str = "cpu"
) -> NDArray[np.float32]:
    """Run the kernel `linear` on x [n, K], weight [N, K] and scale [N, K / block_size]; returns y [n, N], which is poisoned before."""
    (tokens, inputs), outputs = x.shape, len(weight)
    block_size = inputs // scale.shape[1]
    (variant,) = (v for v in variants(sm) if v.kernel == "linear" and v.block_size == block_size)
    grid = plan_linear(tokens, outputs, Tile(variant.tile_tokens, variant.tile_rows))
    tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in (x, weight, scale)]
    y = torch.full((tokens, 4 * outputs), POISON, dtype=torch.uint8, device=device).view(torch.float32)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    FUNCTIONS["linear"][grid](*tensors, y, tokens, inputs, outputs, **variant.constants, **options)
    whole: NDArray[np.float32] = y.cpu().numpy()
    return whole


def choose(kernel: str, shape: Shape, tactic: Tactic) -> Variant:
    """Return the variant that README.md's rules select for a kernel."""
    wanted = {
        "activation": ACTIVATIONS.index(tactic.activation),
        "bits": shape.bits,
        "block_size": shape.block_size,
    }
    fitting = [
        variant
        for variant in variants(tactic.sm)
        if variant.kernel == kernel
        and all(getattr(variant, name) in (value, ANY) for name, value in wanted.items())
        and variant.experts_limit >= shape.experts
        and (variant.tile_tokens == tactic.tile_tokens or not variant.multiplies_weights)
    ]
    return min(fitting, key=lambda variant: variant.experts_limit)


def _tensor(value: NDArray[Any], activation: torch.dtype, scale: bool) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor if scale or value.dtype == np.int8 else tensor.to(activation)


def _workspace(plan: Plan, activation: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    types = {"inner": activation, "expert_tokens": torch.int32, "expert_counts": torch.int32}
    whole = torch.full((plan.workspace,), POISON, dtype=torch.uint8, device=device)
    return {
        part.name: whole[part.offset : part.offset + part.size].view(types.get(part.name, torch.float32))
        for part in plan.buffers
    }
