"""DualPathMoE in numpy, as README.md in this folder specifies it: the reference for every implementation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.plugins.dual_path_moe.rounding import pack, plain_blocks, unpack

Floats = NDArray[np.float32]

INT8_PEAK = 127
QUICK_GELU = 1.702  # quick_gelu(z) = z * sigmoid(1.702 z)


@dataclass(frozen=True)
class DualPathMoEAttributes:
    """The operator's attributes; `group_widths` are dense, shared, expert 0, ….

    Raises:
        ValueError: a width is not a multiple of `block_size`, or `top_k` is not between 1 and the experts.
    """

    group_widths: tuple[int, ...]
    top_k: int
    norm_topk_prob: bool = False
    bits: int = 0
    block_size: int = 0

    def __post_init__(self) -> None:
        """Raise for attributes that the specification does not allow."""
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k {self.top_k} is not between 1 and the {self.experts} experts")
        if self.bits not in (0, 4, 8):
            raise ValueError(f"bits {self.bits} is not 0, 4 or 8")
        for width in self.group_widths if self.bits else ():
            if width % self.block_size:
                raise ValueError(f"group width {width} is not a multiple of block_size {self.block_size}")

    @property
    def experts(self) -> int:
        """Return the number of routed experts."""
        return len(self.group_widths) - 2


@dataclass(frozen=True)
class Routing:
    """The routing of n tokens: coefficients [n, 2], the shared gate [n, 1], every expert's weight [n, E]."""

    coefficients: Floats
    shared: Floats
    experts: Floats


def route(
    x: Floats,
    router: Floats,
    shared_gate: Floats,
    coefficient: Floats,
    coefficient_bias: Floats,
    attributes: DualPathMoEAttributes,
) -> Routing:
    """Route tokens x [n, H]; an expert that was not chosen has weight 0."""
    probabilities = _softmax(x @ router.T)
    chosen = np.argsort(-probabilities, axis=-1, kind="stable")[:, : attributes.top_k]
    kept = np.take_along_axis(probabilities, chosen, -1)
    if attributes.norm_topk_prob:
        kept = kept / kept.sum(-1, keepdims=True)
    experts = np.zeros_like(probabilities)
    np.put_along_axis(experts, chosen, kept, -1)
    return Routing(_softmax(x @ coefficient.T + coefficient_bias), _sigmoid(x @ shared_gate.T), experts)


def quantize_activations(x: Floats, block_size: int) -> Floats:
    """Quantize activations [n, K] to int8 and back (README.md's section Numerics); returns the rounded values, not the integers."""
    blocks = x.reshape(len(x), x.shape[1] // block_size, block_size)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(INT8_PEAK)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.rint(blocks * inverse) * scale, dtype=x.dtype).reshape(x.shape)


def dual_path_moe(
    x: Floats,
    router: Floats,
    shared_gate: Floats,
    coefficient: Floats,
    coefficient_bias: Floats,
    gate: Floats,
    up: Floats,
    down: Floats,
    attributes: DualPathMoEAttributes,
    int8_activations: bool = False,
) -> Floats:
    """Compute the operator with floating-point weights (apply `dequantize_blocks` to others first).

    Args:
        x: [n, H].
        router: [E, H].
        shared_gate: [1, H].
        coefficient: [2, H].
        coefficient_bias: [2].
        gate: [T, H]; up: likewise.
        down: [H, T].
        attributes: the operator's.
        int8_activations: round the activations of each group's products to int8 per `block_size`, as the CPU's kernels do.

    Returns:
        [n, H], in x's dtype: pass float64 for a reference of higher precision.
    """
    routing = route(x, router, shared_gate, coefficient, coefficient_bias, attributes)
    c_moe, c_dense = routing.coefficients[:, :1], routing.coefficients[:, 1:]
    weights = [
        c_dense,
        c_moe * routing.shared,
        *(c_moe * column for column in np.hsplit(routing.experts, attributes.experts)),
    ]

    def rounded(values: Floats) -> Floats:
        return quantize_activations(values, attributes.block_size) if int8_activations else values

    y = np.zeros_like(x)
    ends = np.cumsum(attributes.group_widths)
    for weight, end, width in zip(weights, ends, attributes.group_widths, strict=True):
        group = slice(end - width, end)
        tokens = np.flatnonzero(weight[:, 0] != 0)
        entering = rounded(x[tokens])
        inner = _silu(entering @ gate[group].T) * (entering @ up[group].T)
        y[tokens] += weight[tokens] * (rounded(inner) @ down[:, group].T)
    return y


def block_quant_mlp(
    x: Floats,
    up: tuple[Floats, Floats],
    down: tuple[Floats, Floats],
    block_sizes: tuple[int, int],
    gate: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Compute BlockQuantMLP on x [n, H] with dequantized layers (weight [N, K], bias [N]).

    Activations are rounded to int8 in blocks of `block_sizes`: x's values, and the inner ones.
    """
    of_x, of_inner = block_sizes
    entering = quantize_activations(x, of_x)
    lifted = _affine(entering, up)
    inner = lifted * _sigmoid(QUICK_GELU * lifted) if gate is None else _silu(_affine(entering, gate)) * lifted
    return _affine(quantize_activations(inner, of_inner), down)


def quantize_blocks(weight: Floats, bits: int, block_size: int) -> tuple[NDArray[np.int8], Floats]:
    """Quantize [N, K] in blocks of K by plain rounding, for tests and benchmarks of the operators.

    Returns:
        Packed INT8 [N, K] (8 bits) or [N, K / 2] (4 bits), and scales float32 [N, K / block_size].

    Raises:
        ValueError: `bits` is neither 4 nor 8, or K is not a multiple of `block_size`.
    """
    codes, scales = plain_blocks(weight, bits, block_size)
    return pack(codes, bits), scales


def dequantize_blocks(packed: NDArray[np.int8], scale: Floats, bits: int) -> Floats:
    """Dequantize packed values and scales to a weight [N, K] float32."""
    values = unpack(packed, bits)
    blocks = values.reshape(*scale.shape, -1).astype(np.float32) * scale[..., None].astype(np.float32)
    whole: Floats = blocks.reshape(values.shape)
    return whole


def _affine(x: Floats, layer: tuple[Floats, Floats]) -> Floats:
    weight, bias = layer
    y: Floats = x @ weight.T + bias
    return y


def _softmax(logits: Floats) -> Floats:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    whole: Floats = exponents / exponents.sum(-1, keepdims=True)
    return whole


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)), dtype=x.dtype)


def _silu(x: Floats) -> Floats:
    return x * _sigmoid(x)
