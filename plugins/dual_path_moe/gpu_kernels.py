"""Ask the installed operator library for which GPUs it has kernels, without a GPU."""

from __future__ import annotations

import ctypes
from functools import cache

from echovlm_edge.plugins.dual_path_moe.library import library_path

ANY = (0, 0)


def has_gpu_kernels(compute_capability: tuple[int, int] = ANY) -> bool:
    """Check whether ONNX Runtime's operators were built with kernels for GPUs of a compute capability, by default for any."""
    library, (major, minor) = _library(), compute_capability
    return library is not None and library.echovlm_has_kernels(ctypes.c_int64(10 * major + minor)) == 1


@cache
def _library() -> ctypes.CDLL | None:
    path = library_path()
    return None if path is None else ctypes.CDLL(str(path))
