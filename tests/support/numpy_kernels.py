"""DualPathMoE's GPU kernels in numpy, on host memory: what the driver's stand-in runs for each launch.

Written from plugins/dual_path_moe/cuda/README.md alone: parameters in its order, buffers in its layout. What that page leaves unwritten
stays unwritten, so that a launcher that reads it reads poison.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.plugins.dual_path_moe.reference import dequantize_blocks

Array = NDArray[Any]


def at(address: int, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """The array at an address, writable."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


@dataclass(frozen=True)
class NumpyKernels:
    """The kernels of one variant: x's type, and the weights' `bits` and `block_size`."""

    activation: Any
    bits: int
    block_size: int

    def launch(self, kernel: str, grid: tuple[int, int], parameters: Sequence[int]) -> None:
        """Run one launch."""
        *used, scratch, profile = parameters
        assert scratch == profile == 0
        if kernel == "route":
            self.route(grid[0], *used)
        else:
            getattr(self, kernel)(*used)

    def route(
        self, tokens: int, x: int, router: int, shared_gate: int, coefficient: int, bias: int, group_weights: int,
        hidden: int, experts: int, top_k: int, norm_topk_prob: int,
    ) -> None:  # fmt: skip
        """Write each token's weight of every group."""
        values = self._values(x, (tokens, hidden))
        c = softmax(values @ self._values(coefficient, (2, hidden)).T + self._values(bias, (2,)))
        p = softmax(values @ self._values(router, (experts, hidden)).T)
        chosen = np.argsort(-p, axis=1, kind="stable")[:, :top_k]
        kept = np.zeros_like(p)
        np.put_along_axis(kept, chosen, np.take_along_axis(p, chosen, 1), 1)
        if norm_topk_prob:
            kept /= kept.sum(1, keepdims=True)
        shared = 1 / (1 + np.exp(-values @ self._values(shared_gate, (1, hidden)).T))
        at(group_weights, (tokens, 2 + experts))[:] = np.hstack([c[:, 1:], c[:, :1] * shared, c[:, :1] * kept])

    def gate_up_decode(
        self, x: int, gate: int, up: int, gate_scale: int, up_scale: int, group_weights: int, inner: int,
        tokens: int, hidden: int, dense: int, shared: int, expert: int, experts: int,
    ) -> None:  # fmt: skip
        """Write the inner values of the groups that each token uses."""
        weights = at(group_weights, (tokens, 2 + experts))
        used = [weights[:, group] != 0 for group in range(2 + experts)]
        self._gate_up(x, gate, up, gate_scale, up_scale, weights, used, inner, hidden, (dense, shared, expert))

    def sort(self, group_weights: int, expert_tokens: int, expert_counts: int, tokens: int, experts: int) -> None:
        """List each expert's tokens."""
        weights = at(group_weights, (tokens, 2 + experts))[:, 2:]
        for expert in range(experts):
            listed = np.flatnonzero(weights[:, expert])
            at(expert_tokens, (experts, tokens), np.int32)[expert, : len(listed)] = listed
            at(expert_counts, (experts,), np.int32)[expert] = len(listed)

    def gate_up_prefill(
        self, x: int, gate: int, up: int, gate_scale: int, up_scale: int, group_weights: int, expert_tokens: int,
        expert_counts: int, inner: int, tokens: int, hidden: int, dense: int, shared: int, expert: int, experts: int,
    ) -> None:  # fmt: skip
        """The same, by the experts' lists."""
        weights, everyone = at(group_weights, (tokens, 2 + experts)), np.ones(tokens, bool)
        counts, listed = at(expert_counts, (experts,), np.int32), at(expert_tokens, (experts, tokens), np.int32)
        chosen = [np.isin(np.arange(tokens), listed[e, : counts[e]]) for e in range(experts)]
        used = [everyone, everyone, *chosen]
        self._gate_up(x, gate, up, gate_scale, up_scale, weights, used, inner, hidden, (dense, shared, expert))

    def down_decode(
        self, inner: int, down: int, down_scale: int, group_weights: int, parts: int,
        tokens: int, hidden: int, dense: int, shared: int, expert: int, experts: int, splits: int,
    ) -> None:  # fmt: skip
        """Write each split's share of the products."""
        values, weight = self._down(
            inner, down, down_scale, group_weights, tokens, hidden, (dense, shared, expert), experts
        )
        for split in range(splits):
            at(parts, (splits, tokens, hidden))[split] = values[:, split::splits] @ weight[:, split::splits].T

    def sum_parts(self, parts: int, y: int, elements: int, splits: int) -> None:
        """Add the splits up."""
        at(y, (elements,), self.activation)[:] = at(parts, (splits, elements)).sum(0).astype(self.activation)

    def down_prefill(
        self, inner: int, down: int, down_scale: int, group_weights: int, parts: int, y: int,
        tokens: int, hidden: int, dense: int, shared: int, expert: int, experts: int, splits: int,
    ) -> None:  # fmt: skip
        """Write the products, or each split's share of them."""
        sizes = (tokens, hidden, dense, shared, expert, experts)
        if splits > 1:
            self.down_decode(inner, down, down_scale, group_weights, parts, *sizes, splits)
            return
        values, weight = self._down(
            inner, down, down_scale, group_weights, tokens, hidden, (dense, shared, expert), experts
        )
        at(y, (tokens, hidden), self.activation)[:] = (values @ weight.T).astype(self.activation)

    def _gate_up(
        self, x: int, gate: int, up: int, gate_scale: int, up_scale: int, weights: Array, used: Sequence[Array],
        inner: int, hidden: int, widths: tuple[int, int, int],
    ) -> None:  # fmt: skip
        tokens, groups = weights.shape
        ends = np.cumsum([*widths[:2], *[widths[2]] * (groups - 2)])
        total = int(ends[-1])
        values = self._values(x, (tokens, hidden))
        gates, ups = self._weight(gate, gate_scale, (total, hidden)), self._weight(up, up_scale, (total, hidden))
        written = at(inner, (tokens, total), self.activation)
        for group, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            rows = np.flatnonzero(used[group])
            gated = values[rows] @ gates[start:end].T
            product = gated / (1 + np.exp(-gated)) * (values[rows] @ ups[start:end].T)
            written[rows, start:end] = (weights[rows, group, None] * product).astype(self.activation)

    def _down(
        self, inner: int, down: int, down_scale: int, group_weights: int, tokens: int, hidden: int,
        widths: tuple[int, int, int], experts: int,
    ) -> tuple[Array, Array]:  # fmt: skip
        """The inner values, zero where a token does not use the group, and the weight."""
        sizes = [*widths[:2], *[widths[2]] * experts]
        used = np.repeat(at(group_weights, (tokens, 2 + experts)) != 0, sizes, axis=1)
        values = np.where(used, self._values(inner, (tokens, sum(sizes))), 0)
        return values, self._weight(down, down_scale, (hidden, sum(sizes)))

    def _values(self, address: int, shape: tuple[int, ...]) -> Array:
        return at(address, shape, self.activation).astype(np.float64)

    def _weight(self, address: int, scale: int, shape: tuple[int, int]) -> Array:
        if self.bits == 0:
            assert scale == 0
            return self._values(address, shape)
        packed = at(address, (shape[0], shape[1] // 2), np.int8)
        scales = at(scale, (shape[0], shape[1] // self.block_size))
        return dequantize_blocks(packed, scales, self.bits).astype(np.float64)


def softmax(logits: Array) -> Array:
    """The softmax of each row."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    whole: Array = exponents / exponents.sum(-1, keepdims=True)
    return whole
