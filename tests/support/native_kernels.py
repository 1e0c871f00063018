"""The installed library of operators, and the kernels of it that this processor can run."""

from __future__ import annotations

from functools import cache

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary


@cache
def library() -> NativeLibrary:
    path = library_path()
    assert path is not None
    return NativeLibrary(path)


def kernels() -> tuple[str, ...]:
    return library().available_kernels if library_path() else ()
