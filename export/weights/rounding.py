"""How a weight's values become codes and scales: a `Rounding`, which the build passes to every storage."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary
from echovlm_edge.plugins.dual_path_moe.rounding import Codes, Floats, plain_blocks, search_blocks

Scales = NDArray[Any]  # float32, float16 or bfloat16


class Rounding(Protocol):
    """Rounds a weight [rows, columns] float32 to 4 or 8 bits.

    Returns codes int8 [rows, columns], unpacked, and scales [rows, columns / block_size] of `scale_type`.
    """

    def __call__(
        self, weight: Floats, bits: int, block_size: int, *, scale_type: DTypeLike = np.float32
    ) -> tuple[Codes, Scales]: ...


def round_blocks(
    weight: Floats,
    bits: int,
    block_size: int,
    importance: Floats | None = None,
    scale_type: DTypeLike = np.float32,
) -> tuple[Codes, Scales]:
    """Round a weight [rows, columns] with the scale of each block that a search finds best; as `search_blocks` says.

    `importance` [columns], positive, weighs the squared errors of each column; None weighs all the same.
    The native library searches, on the calling thread; where it was not built, numpy does, some hundred times as slowly.
    """
    library = _library()
    if library is None:
        return search_blocks(weight, bits, block_size, importance, scale_type)
    return library.round_blocks(weight, bits, block_size, importance, scale_type)


@cache
def _library() -> NativeLibrary | None:
    path = library_path()
    return None if path is None else NativeLibrary(path)


ROUNDINGS: dict[str, Rounding] = {"search": round_blocks, "plain": plain_blocks}
