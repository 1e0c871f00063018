"""Measure with the kernels of a lesser instruction set than this processor has, as another machine would run them."""

from __future__ import annotations

import argparse

from benchmarks.limits import installed_library
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary
from echovlm_edge.runtime.contracts.errors import InvalidInput


def add_kernels(parser: argparse.ArgumentParser) -> None:
    """Declare the option that names them."""
    parser.add_argument(
        "--kernels", metavar="NAME", help="of this processor's: avx512_vnni, avx_vnni, avx2 (default: its best)"
    )


def use_kernels(name: str | None) -> None:
    """Let this process's operators use them; ONNX Runtime's own keep the processor's best.

    Raises:
        InvalidInput: this processor cannot run them.
    """
    if name is None:
        return
    native = NativeLibrary(installed_library())
    if name not in native.available_kernels:
        raise InvalidInput(f"--kernels {name} is none of this processor's: {', '.join(native.available_kernels)}.")
    native.use(name)
