"""The plugin library's own launches, by its C interface: what TensorRT's callbacks call, without TensorRT."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

from echovlm_edge.plugins.dual_path_moe.cuda.planner import Shape
from tests.gpu.cubins import plugin_to_test

INPUTS = (
    *("x", "router", "shared_gate", "coefficient", "coefficient_bias", "gate", "up", "down"),
    *("gate_scale", "up_scale", "down_scale"),
)
SIZES = ("groups", "top_k", "norm_topk_prob", "bits", "block_size", "activation", "hidden", "tokens", "tile_tokens")


class Call(ctypes.Structure):
    """EchovlmCall of launch/c_launch.hpp."""

    _fields_ = (
        ("group_widths", ctypes.POINTER(ctypes.c_int32)),
        *((name, ctypes.c_int64) for name in SIZES),
        ("inputs", ctypes.c_void_p * len(INPUTS)),
        ("y", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


def c_launch(
    shape: Shape, activation: int, tokens: int, tile_tokens: int, addresses: Mapping[str, int], stream: int
) -> None:
    """Queue one call; `addresses` by name, with `y` and `workspace`, those that are absent are null.

    Raises:
        RuntimeError: the library refused, in its own words.
    """
    widths = (ctypes.c_int32 * len(shape.group_widths))(*shape.group_widths)
    call = Call(
        widths,
        *(len(widths), shape.top_k, 0, shape.bits, shape.block_size, activation, shape.hidden, tokens, tile_tokens),
        (ctypes.c_void_p * len(INPUTS))(*(addresses.get(name) for name in INPUTS)),
        *(addresses["y"], addresses["workspace"], stream),
    )
    _queue("echovlm_launch", call)


class LinearCall(ctypes.Structure):
    """EchovlmLinearCall of launch/c_launch.hpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("bits", "block_size", "tokens", "inputs", "outputs")),
        ("tensors", ctypes.c_void_p * 3),
        ("y", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    )


def c_launch_linear(sizes: Sequence[int], tensors: Sequence[int], y: int, stream: int) -> None:
    """Queue one product of `sizes` (bits, block_size, tokens, inputs, outputs) of `tensors`, the addresses of x, weight and scale.

    Raises:
        RuntimeError: the library refused, in its own words.
    """
    _queue("echovlm_launch_linear", LinearCall(*sizes, (ctypes.c_void_p * 3)(*tensors), y, stream))


def _queue(function: str, call: ctypes.Structure) -> None:
    library, said = ctypes.CDLL(str(plugin_to_test())), ctypes.create_string_buffer(1000)
    if getattr(library, function)(ctypes.byref(call), said, ctypes.c_size_t(len(said))) != 0:
        raise RuntimeError(said.value.decode())
