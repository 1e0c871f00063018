"""Windows of an image's patches, for vision encoders most of whose blocks attend within squares of the image (Qwen2.5-VL).

A graph takes the patches in merge order, orders them by window, and gives the features back in merge order; what it needs for that is
computed here. Squares at the right and lower edges may be smaller. An operator that knows where each window begins takes `offsets`;
standard operators take every window padded to a whole one, with a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """One image's windows.

    Attributes:
        order: int64 [p], the patches window by window: at each place, the patch's number in merge order.
        offsets: int64 [w + 1], the place at which each window begins, then p.
        whole: patches of a whole window.
    """

    order: Integers
    offsets: Integers
    whole: int

    def inputs(self) -> dict[str, NDArray[Any]]:
        """Return everything that a vision encoder's graph may take, by the input's name.

        window_order [p] and merge_order [p], its inverse; window_offsets [w + 1]. For padded windows: window_rows [w, whole], the
        place of each row of a window (in the padding, the window's first); window_mask bool [w, 1, whole, whole], true where the key
        is none of the padding; window_places [p], where among the padded rows each place is.
        """
        starts, ends = self.offsets[:-1, None], self.offsets[1:, None]
        rows = starts + np.arange(self.whole)
        inside = rows < ends
        masks = np.broadcast_to(inside[:, None, None], (len(inside), 1, self.whole, self.whole))
        return {
            "window_order": self.order,
            "merge_order": np.argsort(self.order),
            "window_offsets": self.offsets,
            "window_rows": np.where(inside, rows, starts),
            "window_mask": np.ascontiguousarray(masks),
            "window_places": np.flatnonzero(inside),
        }


def image_windows(grid: tuple[int, int, int], merge_size: int, window: int) -> Windows | None:
    """Divide an image into windows; None for a vision encoder without any.

    Args:
        grid: the image's patches (1, height, width).
        merge_size: neighbours merged along each axis; patches come merged square by merged square.
        window: merged patches along a window's side; 0 where the vision encoder has no windows.
    """
    if not window:
        return None
    _, height, width = grid
    rows, columns = np.indices((height // merge_size, width // merge_size)).reshape(2, -1) // window
    numbers = rows * (columns.max() + 1) + columns  # of the window that holds each merged patch
    square = merge_size**2
    merged = np.argsort(numbers, kind="stable")
    order = (merged[:, None] * square + np.arange(square)).reshape(-1)
    return Windows(order, np.append(0, np.cumsum(np.bincount(numbers)) * square), window**2 * square)


def most_windows(patches: int, merge_size: int, window: int, longest: int) -> int:
    """Return an upper bound of the windows of an image of so many patches, whose sides differ by a factor of `longest` at most.

    A side of n merged patches has at most (n - 1) / window + 1 windows.
    """
    merged = patches / merge_size**2
    side = (longest * merged) ** 0.5  # the longest; then the other one is merged / side
    beside = (window - 1) / window
    return int(merged / window**2 + beside / window * (side + merged / side) + beside**2) + 1
