"""Rotary angles, computed on the host: M-RoPE for the decoder, row and column angles for the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VISION_THETA = 10000.0  # Qwen2-VL's vision encoder has no key for it


@dataclass(frozen=True)
class Angles:
    """cos and sin of every position's angles, float32 [positions, head_dim / 2]."""

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]

    @classmethod
    def of(cls, radians: NDArray[np.float32]) -> Angles:
        """Compute cos and sin of `radians`."""
        return cls(np.cos(radians), np.sin(radians))


def _inverse_frequencies(dim: int, theta: float) -> NDArray[np.float32]:
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1) / np.power(np.float32(theta), exponents, dtype=np.float32)).astype(np.float32)


class MultimodalRotary:
    """M-RoPE (Qwen2-VL, section 2.1): head_dim / 2 frequencies, divided among time, height and width positions."""

    def __init__(self, section: tuple[int, int, int], theta: float) -> None:
        """Compute the frequencies; `section` is how many of them follow the temporal, height and width position."""
        self._frequencies = _inverse_frequencies(2 * sum(section), theta)
        self._axis = np.repeat(np.arange(3), section)

    def angles(self, positions: NDArray[np.int64]) -> Angles:
        """Compute the angles of tokens at `positions`, int64 [3, n]."""
        radians = positions.astype(np.float32)[self._axis].T * self._frequencies
        return Angles.of(radians.astype(np.float32))


def vision_angles(grid: tuple[int, int, int], merge_size: int, head_dim: int) -> Angles:
    """Compute the row and column angles of an image's patches, in merge order.

    Args:
        grid: the image's patches (1, height, width).
        merge_size: neighbours merged along each axis; patches come merged square by merged square.
        head_dim: the vision encoder's; a quarter of it are frequencies, used for rows and again for columns.
    """
    _, height, width = grid
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    squares = (height // merge_size, merge_size, width // merge_size, merge_size)
    order = [axis.reshape(squares).transpose(0, 2, 1, 3).reshape(-1, 1).astype(np.float32) for axis in (rows, columns)]
    frequencies = _inverse_frequencies(head_dim // 2, VISION_THETA)
    return Angles.of(np.concatenate([axis * frequencies for axis in order], axis=1))
