"""What a calibration takes of memory, disk and arithmetic, known from the model's shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from echovlm_edge.export.calibration.passage.rows import ROWS_AT_ONCE
from echovlm_edge.export.model.weights import Weight, below, decoder_weights, part_weights
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.source.config import EchoVLMConfig

LIBRARIES = 700 << 20  # Python, PyTorch and what they keep
MOST_WORKERS = 8  # threads, each with its own piece of activations


@dataclass(frozen=True)
class Account:
    """What a calibration takes.

    Attributes:
        memory: bytes at its peak.
        disk: bytes, until the bundle is complete.
        operations: multiplications and additions.
    """

    memory: int
    disk: int
    operations: float


def account(checkpoint: Checkpoint, tokens: int, feedback_width: int, threads: int, *, mixed: bool) -> Account:
    """Compute it.

    Args:
        checkpoint: the model's.
        tokens: of all texts.
        feedback_width: inputs up to which a layer is rounded with error feedback.
        threads: that compute.
        mixed: whether the layers' sensitivity is measured first, which takes the model once more.
    """
    config = checkpoint.config
    linears = _linears(checkpoint)
    widths = {columns for _, columns in linears if columns <= feedback_width}
    loaded = max(_layer_bytes(checkpoint), 6 * math.prod(_shape(checkpoint, "lm_head.weight")))
    pictures = 4 * tokens * config.vision.spatial_merge_size**2 * config.vision.patch_values
    memory = LIBRARIES + loaded + max(map(_factor_bytes, widths), default=0) + pictures + _piece_bytes(config, threads)
    hidden = 4 * tokens * config.decoder.hidden_size
    disk = sum(rows * columns for rows, columns in linears) + 4 * hidden + pictures
    forward = sum(2 * tokens * rows * columns for rows, columns in linears)
    feedback = sum(rows * columns**2 for rows, columns in linears if columns <= feedback_width)
    moments = sum(tokens * columns**2 for columns in _inputs(config) if columns <= feedback_width)
    # gate and up run for the output once more than for down's inputs, and a factor takes 3 n^3 in float64, which is half as fast
    operations = (
        (2.7 if mixed else 1.7) * forward
        + feedback
        + moments
        + sum(6 * columns**3 for columns in _inputs(config) if columns <= feedback_width)
    )
    return Account(memory, disk, operations)


def operations_per_second(threads: int) -> float:
    """Measure what this machine computes: products of float32 matrices, in a fraction of a second, times the threads."""
    before, size = torch.get_num_threads(), 1024
    torch.set_num_threads(1)
    x = torch.ones(size, size)
    x @ x
    started = time.perf_counter()
    x @ x
    seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return threads * 2 * size**3 / seconds


def _linears(checkpoint: Checkpoint) -> list[tuple[int, int]]:
    """List the rows and columns of every linear layer's weight."""
    weights = [weight for part in part_weights(checkpoint.config).values() for weight in part.values()]
    shapes = [weight.part(index).shape(checkpoint) for weight in weights for index in range(len(weight.tensors))]
    return [(shape[0], shape[1]) for shape in shapes if len(shape) == 2]


def _inputs(config: EchoVLMConfig) -> list[int]:
    """List the width of the inputs at every place where moments are gathered."""
    vision, decoder = config.vision, config.decoder
    block = [vision.embed_dim] * 3 + [vision.mlp_dim]
    layer = [decoder.hidden_size, decoder.num_attention_heads * decoder.head_dim]
    layer += [width for group in decoder.group_widths for width in (decoder.hidden_size, group)]
    ends = [vision.patch_values, vision.merged_dim, vision.merged_dim, decoder.hidden_size]
    return block * vision.depth + layer * decoder.num_hidden_layers + ends


def _layer_bytes(checkpoint: Checkpoint) -> int:
    """Return what a decoder layer takes while it is loaded: float32, and its largest parameter twice, which is joined from pieces."""
    sources = below(decoder_weights(checkpoint.config), "layers.0")
    sizes = [4 * math.prod(weight.shape(checkpoint)) for weight in sources.values()]
    return sum(sizes) + max(sizes)


def _shape(checkpoint: Checkpoint, parameter: str) -> tuple[int, ...]:
    sources: Mapping[str, Weight] = decoder_weights(checkpoint.config)
    return sources[parameter].shape(checkpoint)


def _factor_bytes(columns: int) -> int:
    """Return what the matrix of moments and its factor take: float32 thrice, then float64 in order, inverted and factored."""
    return (3 * 4 + 3 * 8) * columns**2


def _piece_bytes(config: EchoVLMConfig, threads: int) -> int:
    """Return what the activations of the pieces in work take: gate, up, their product, and what waits to be taken."""
    return 4 * 4 * ROWS_AT_ONCE * max(config.decoder.group_widths) * (min(threads, MOST_WORKERS) + 1)
