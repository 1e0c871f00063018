"""Activations of all calibration tokens, in a file: read and written some rows at a time, so that memory does not grow with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ROWS_AT_ONCE = 512  # a multiple of the patches that the projector merges


class Rows:
    """float32 [count, width] in a file, which is made where there is none. Threads may read and write different rows."""

    def __init__(self, path: Path, count: int, width: int) -> None:
        """Open or make the file."""
        self.path, self.count, self.width = path, count, width
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._descriptor, count * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return 4 * self.width

    def read(self, rows: slice) -> Tensor:
        """Read some rows."""
        data = bytearray((rows.stop - rows.start) * self._row_bytes)
        done = 0
        while done < len(data):  # one call reads 2 GB at most
            done += os.preadv(self._descriptor, [memoryview(data)[done:]], rows.start * self._row_bytes + done)
        return torch.frombuffer(data, dtype=torch.float32).view(-1, self.width)

    def write(self, rows: slice, values: Tensor) -> None:
        """Write some rows."""
        data = values.contiguous().numpy().data.cast("B")
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], rows.start * self._row_bytes + done)

    def add(self, rows: slice, values: Tensor) -> None:
        """Add to some rows."""
        self.write(rows, self.read(rows) + values)

    def clear(self) -> None:
        """Set all to zero."""
        os.ftruncate(self._descriptor, 0)
        os.ftruncate(self._descriptor, self.count * self._row_bytes)

    def pieces(self) -> Iterator[slice]:
        """Yield all rows, some at a time."""
        for start in range(0, self.count, ROWS_AT_ONCE):
            yield slice(start, min(start + ROWS_AT_ONCE, self.count))

    def remove(self) -> None:
        """Close and delete the file."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
