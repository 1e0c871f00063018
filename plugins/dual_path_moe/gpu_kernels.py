"""Ask the installed operator library for which GPUs it has kernels, without a GPU."""

from __future__ import annotations

import ctypes
from functools import cache

from echovlm_edge.plugins.dual_path_moe.library import library_path


def has_gpu_kernels() -> bool:
    """Check whether ONNX Runtime's operators were built with the kernels for GPUs in them."""
    library, size = _library(), ctypes.c_size_t()
    return library is not None and library.echovlm_embedded_archive(ctypes.byref(size)) is not None


def check_gpu(compute_capability: tuple[int, int]) -> None:
    """Check that the library has kernels for GPUs of this compute capability.

    Raises:
        ValueError: it has none; has the library's message, which names the GPUs that it was built for.
    """
    library, said = _library(), ctypes.create_string_buffer(512)
    if library is None:
        raise ValueError("this install has no operator library, because there was no C++ compiler.")
    major, minor = compute_capability
    if library.echovlm_check_device(ctypes.c_int64(10 * major + minor), said, ctypes.c_size_t(len(said))):
        raise ValueError(said.value.decode())


@cache
def _library() -> ctypes.CDLL | None:
    path = library_path()
    if path is None:
        return None
    library = ctypes.CDLL(str(path))
    library.echovlm_embedded_archive.restype = ctypes.c_void_p
    return library
