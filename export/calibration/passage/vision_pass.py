"""Take all pictures through the vision encoder and the projector, a layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from echovlm_edge.export.calibration.passage.linears import Linears, Visitor, values_of
from echovlm_edge.export.calibration.passage.parallel import Workers
from echovlm_edge.export.calibration.passage.rows import Rows
from echovlm_edge.export.calibration.passage.texts import Picture
from echovlm_edge.export.model import weights
from echovlm_edge.export.model.operators import Linear, self_attention
from echovlm_edge.export.model.projector import Projector
from echovlm_edge.export.model.vision_encoder import FeedForward, VisionBlock
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.prompting.rotary import vision_angles
from echovlm_edge.runtime.prompting.windows import Windows, image_windows


@dataclass(frozen=True)
class VisionPass:
    """The vision encoder and projector of a checkpoint, on pictures that lie one after another in a file of patches."""

    checkpoint: Checkpoint
    folder: Path
    pool: Workers
    visitor: Visitor

    def run(self, pictures: Sequence[Picture], output: Path) -> Rows:
        """Write the pictures' embeddings, in their order, float32 [tokens, hidden_size], to the file `output`."""
        config = self.checkpoint.config
        parts = weights.parts_without_values(config)
        sources = weights.part_weights(config)
        encoder, projector = parts.vision_encoder, parts.projector
        spans, total = [], 0
        for picture in pictures:
            spans.append(slice(total, total + len(picture.patches.values)))
            total = spans[-1].stop
        patches = Rows(self.folder / "patches", total, config.vision.patch_values)
        for picture, span in zip(pictures, spans, strict=True):
            patches.write(span, torch.from_numpy(picture.patches.values))
        x = self._embed(encoder, patches, sources["vision_encoder"])
        patches.remove()
        angles = [
            vision_angles(picture.patches.grid, config.vision.spatial_merge_size, config.vision.head_dim)
            for picture in pictures
        ]
        turns = [(torch.from_numpy(one.cos)[None], torch.from_numpy(one.sin)[None]) for one in angles]
        windows = [
            image_windows(picture.patches.grid, config.vision.spatial_merge_size, config.vision.window)
            for picture in pictures
        ]
        attended = Rows(self.folder / "attended", total, config.vision.embed_dim)
        assert isinstance(encoder.blocks, nn.ModuleList)
        for number, block in enumerate(encoder.blocks):
            assert isinstance(block, VisionBlock)
            own = weights.below(sources["vision_encoder"], f"blocks.{number}")
            weights.load(block, own, self.checkpoint)
            whole = number in config.vision.full_blocks
            attentions = [
                _Attention(*turn, None if whole else window) for turn, window in zip(turns, windows, strict=True)
            ]
            self._block(block, own, x, attended, spans, attentions)
            block.to("meta")
        attended.remove()
        embeddings = self._project(projector, x, sources["projector"], output)
        x.remove()
        return embeddings

    def _embed(self, encoder: nn.Module, patches: Rows, sources: dict[str, weights.Weight]) -> Rows:
        embed = encoder.patch_embed
        assert isinstance(embed, Linear)
        own = weights.below(sources, "patch_embed")
        weights.load(embed, own, self.checkpoint)
        self._visit([(embed, own["weight"])], patches, _same)
        x = Rows(self.folder / "vision", patches.count, embed.weight.shape[0])
        self.pool.each(lambda rows: x.write(rows, embed(patches.read(rows))), patches.pieces())
        return x

    def _block(
        self,
        block: VisionBlock,
        own: dict[str, weights.Weight],
        x: Rows,
        attended: Rows,
        spans: Sequence[slice],
        attentions: Sequence[_Attention],
    ) -> None:
        self._visit([(block.attn.qkv, own["attn.qkv.weight"])], x, block.norm1)

        def attend(number: int) -> None:
            qkv = block.attn.qkv(block.norm1(x.read(spans[number])))
            attended.write(spans[number], attentions[number].attend(qkv, block.attn.heads))

        self.pool.each(attend, range(len(spans)))
        self._visit([(block.attn.proj, own["attn.proj.weight"])], attended, _same)
        self.pool.each(lambda rows: x.add(rows, block.attn.proj(attended.read(rows))), x.pieces())

        mlp = cast(FeedForward, block.mlp)

        def inner(rows: Tensor) -> Tensor:
            return mlp.inner(block.norm2(rows))

        leaving = getattr(mlp, mlp.leaving)
        for names, before in ((mlp.entering, block.norm2), ((mlp.leaving,), inner)):
            self._visit([(getattr(mlp, name), own[f"mlp.{name}.weight"]) for name in names], x, before)
        self.pool.each(lambda rows: x.add(rows, leaving(inner(x.read(rows)))), x.pieces())

    def _project(self, projector: Projector, x: Rows, sources: dict[str, weights.Weight], output: Path) -> Rows:
        weights.load(projector, sources, self.checkpoint)

        def merged(rows: Tensor) -> Tensor:
            return projector.ln_q(rows).reshape(-1, projector.merged_dim)

        def inner(rows: Tensor) -> Tensor:
            return functional.gelu(projector.fc1(merged(rows)))

        self._visit([(projector.fc1, sources["fc1.weight"])], x, merged)
        self._visit([(projector.fc2, sources["fc2.weight"])], x, inner)
        together = projector.merged_dim // x.width  # patches of a token; a piece of rows is a multiple of it
        embeddings = Rows(output, x.count // together, projector.fc2.weight.shape[0])

        def project(rows: slice) -> None:
            to = slice(rows.start // together, rows.stop // together)
            embeddings.write(to, projector.fc2(inner(x.read(rows))))

        self.pool.each(project, x.pieces())
        return embeddings

    def _visit(
        self, linears: Sequence[tuple[Linear, weights.Weight]], rows: Rows, before: Callable[[Tensor], Tensor]
    ) -> None:
        """Show linear layers with the same inputs to the visitor: what `before` makes of the rows."""

        def inputs() -> Iterator[Tensor]:
            return self.pool.in_order(lambda some: before(rows.read(some)), rows.pieces())

        values = [values_of(linear.weight, weight, self.checkpoint) for linear, weight in linears]
        self.visitor(Linears({name: one for some in values for name, one in some.items()}), inputs)


@dataclass(frozen=True)
class _Attention:
    """Who attends to whom in one picture, and where its patches are: cosines and sines [1, p, head_dim / 2]."""

    cos: Tensor
    sin: Tensor
    windows: Windows | None

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """Compute attention in a picture: qkv [p, 3 * width], in merge order, to [p, width]."""
        if self.windows is None:
            return self_attention(qkv[None], self.cos, self.sin, heads)[0]
        order, offsets = torch.from_numpy(self.windows.order), torch.from_numpy(self.windows.offsets)
        attended = self_attention(qkv[None, order], self.cos[:, order], self.sin[:, order], heads, offsets)[0]
        return torch.empty_like(attended).index_copy_(0, order, attended)


def _same(rows: Tensor) -> Tensor:
    return rows
