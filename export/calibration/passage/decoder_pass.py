"""Take all tokens through the decoder, a layer at a time: each weight is seen with inputs that the weights before it have already made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from echovlm_edge.export.calibration.passage.linears import Linears, Visitor, values_of
from echovlm_edge.export.calibration.passage.parallel import Workers
from echovlm_edge.export.calibration.passage.rows import Rows
from echovlm_edge.export.model import weights
from echovlm_edge.export.model.decoder import DecoderAttention, DecoderLayer
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.model.operators import cached_attention
from echovlm_edge.export.source.checkpoint import Checkpoint

FEWEST_TOKENS = 256  # that reach an expert; where there are fewer, all tokens are taken


@dataclass(frozen=True)
class Tokens:
    """All sequences' tokens, one after another.

    Attributes:
        spans: each sequence's.
        angles: each sequence's M-RoPE cosines and sines, float32 [1, n, head_dim / 2].
        weight: float32 [tokens], how much the square of an error counts.
    """

    spans: Sequence[slice]
    angles: Sequence[tuple[Tensor, Tensor]]
    weight: Tensor


@dataclass(frozen=True)
class DecoderPass:
    """The decoder of a checkpoint, on tokens whose hidden states lie in a file."""

    checkpoint: Checkpoint
    folder: Path
    pool: Workers
    visitor: Visitor

    def layer(self, number: int, tokens: Tokens, hidden: Rows, output: Path) -> Rows:
        """Run one layer on hidden states [tokens, hidden_size]; returns the next, in the file `output`."""
        config = self.checkpoint.config
        layer = weights.parts_without_values(config).decoder.layers[number]
        assert isinstance(layer, DecoderLayer)
        own = weights.below(weights.decoder_weights(config), f"layers.{number}")
        weights.load(layer, own, self.checkpoint)
        self.visitor.enter(number, self._power(hidden))
        following = Rows(output, hidden.count, hidden.width)
        self._attention(layer, own, tokens, hidden, following)
        self._dual_path_moe(layer, own, tokens, following)
        return following

    def head(self, tokens: Tokens, hidden: Rows) -> None:
        """Show the head to the visitor."""
        decoder, sources = (
            weights.parts_without_values(self.checkpoint.config).decoder,
            weights.decoder_weights(self.checkpoint.config),
        )
        for name in ("norm", "lm_head"):
            weights.load(decoder.get_submodule(name), weights.below(sources, name), self.checkpoint)
        inputs = self._weighted(hidden, decoder.norm, tokens)
        self.visitor(Linears(values_of(decoder.lm_head.weight, sources["lm_head.weight"], self.checkpoint)), inputs)

    def _power(self, hidden: Rows) -> float:
        total = sum(self.pool.in_order(lambda rows: float(hidden.read(rows).double().square().sum()), hidden.pieces()))
        return total / (hidden.count * hidden.width)

    def _weighted(
        self, hidden: Rows, norm: Callable[[Tensor], Tensor], tokens: Tokens
    ) -> Callable[[], Iterator[Tensor]]:
        """Make the inputs of linear layers that stand after `norm`."""
        roots = tokens.weight.sqrt()[:, None]

        def inputs() -> Iterator[Tensor]:
            return self.pool.in_order(lambda rows: norm(hidden.read(rows)) * roots[rows], hidden.pieces())

        return inputs

    def _attention(
        self, layer: DecoderLayer, own: dict[str, weights.Weight], tokens: Tokens, hidden: Rows, following: Rows
    ) -> None:
        """Write hidden + attention to `following`."""
        attention, norm = layer.self_attn, layer.input_layernorm
        values = values_of(attention.qkv_proj.weight, own["self_attn.qkv_proj.weight"], self.checkpoint)
        self.visitor(Linears(values), self._weighted(hidden, norm, tokens))
        attended = Rows(self.folder / "attended", hidden.count, attention.o_proj.weight.shape[1])

        def attend(number: int) -> None:
            span = tokens.spans[number]
            attended.write(span, self._attend(attention, norm(hidden.read(span)), *tokens.angles[number]))

        self.pool.each(attend, range(len(tokens.spans)))
        values = values_of(attention.o_proj.weight, own["self_attn.o_proj.weight"], self.checkpoint)
        self.visitor(Linears(values), self._weighted(attended, _same, tokens))
        self.pool.each(
            lambda rows: following.write(rows, hidden.read(rows) + attention.o_proj(attended.read(rows))),
            hidden.pieces(),
        )
        attended.remove()

    def _attend(self, attention: DecoderAttention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Compute one sequence's attention before its last projection: x [n, hidden_size] to [n, heads * head_dim]."""
        config = self.checkpoint.config.decoder
        keys, values = (torch.empty(1, config.num_key_value_heads, len(x), config.head_dim) for _ in range(2))
        past = torch.zeros(1, dtype=torch.int64)
        return cached_attention(attention.qkv_proj(x[None]), cos, sin, keys, values, past, attention.heads)[0][0]

    def _dual_path_moe(
        self, layer: DecoderLayer, own: dict[str, weights.Weight], tokens: Tokens, following: Rows
    ) -> None:
        """Add DualPathMoE's output to `following`, group by group."""
        block, norm = layer.dual_path_moe, layer.post_attention_layernorm
        shares = torch.cat(
            list(self.pool.in_order(lambda rows: _shares(block, norm(following.read(rows))), following.pieces()))
        )
        output = Rows(self.folder / "output", following.count, following.width)
        output.clear()
        stacked = {
            name: values_of(getattr(block, name), own[f"dual_path_moe.{name}"], self.checkpoint)
            for name in ("gate", "up", "down")
        }
        for group in range(len(own["dual_path_moe.gate"].tensors)):  # a decoder without experts has the dense one alone
            self._group(_Group.of(stacked, group), norm, tokens, following, shares[:, group], output)
        self.pool.each(lambda rows: following.add(rows, output.read(rows)), following.pieces())
        output.remove()

    def _group(
        self,
        group: _Group,
        norm: Callable[[Tensor], Tensor],
        tokens: Tokens,
        hidden: Rows,
        share: Tensor,
        output: Rows,
    ) -> None:
        few = int((share != 0).sum()) < FEWEST_TOKENS
        counted = (torch.ones_like(share) if few else share) * tokens.weight.sqrt()

        def inputs(then: Callable[[Tensor], Tensor]) -> Callable[[], Iterator[Tensor]]:
            def some(rows: slice) -> Tensor:
                chosen = counted[rows].nonzero()[:, 0]
                return then(norm(hidden.read(rows)[chosen])) * counted[rows][chosen, None]

            return lambda: self.pool.in_order(some, hidden.pieces())

        self.visitor(Linears(group.entering, everyones=few), inputs(_same))
        self.visitor(Linears(group.leaving, everyones=few), inputs(group.inner))

        def compute(rows: slice) -> None:
            chosen = share[rows].nonzero()[:, 0]
            values = output.read(rows)
            values[chosen] += share[rows][chosen, None] * group.compute(norm(hidden.read(rows)[chosen]))
            output.write(rows, values)

        self.pool.each(compute, hidden.pieces())


@dataclass(frozen=True)
class _Group:
    """One SwiGLU network of DualPathMoE: its weights by their names in the checkpoint, gate and up, and down."""

    entering: dict[str, Tensor]
    leaving: dict[str, Tensor]

    @classmethod
    def of(cls, stacked: dict[str, dict[str, Tensor]], group: int) -> _Group:
        gate, up, down = ([*stacked[name].items()][group] for name in ("gate", "up", "down"))
        return cls(dict([gate, up]), dict([down]))

    def inner(self, x: Tensor) -> Tensor:
        gate, up = self.entering.values()
        return functional.silu(functional.linear(x, gate)) * functional.linear(x, up)

    def compute(self, x: Tensor) -> Tensor:
        (down,) = self.leaving.values()
        return functional.linear(self.inner(x), down)


def _shares(block: DualPathMoE, x: Tensor) -> Tensor:
    """Compute the factor of each group's output for tokens x [n, hidden_size]: [n, groups], 0 where an expert was not chosen."""
    coefficients, kept, experts = block.route(x)
    shared = torch.sigmoid(functional.linear(x, block.shared_gate))
    chosen = torch.zeros(len(x), len(block.group_widths) - 2).scatter_(1, experts, kept)
    return torch.cat([coefficients[:, 1:], coefficients[:, :1] * torch.cat([shared, chosen], 1)], 1)


def _same(rows: Tensor) -> Tensor:
    return rows
