"""Call the native library's plain C functions on numpy arrays, without ONNX Runtime: for builds, tests and benchmarks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from echovlm_edge.plugins.dual_path_moe.reference import DualPathMoEAttributes, Floats
from echovlm_edge.plugins.dual_path_moe.rounding import DIVISORS

# A stored weight: float32, float16 or bfloat16 (as uint16) [N, K] without scales; or packed int8 with its scales.
StoredWeight = tuple[NDArray[np.generic], "NDArray[np.generic] | None"]

StoredLinear = tuple[StoredWeight, "Floats | None"]  # a weight and its bias

Integers = NDArray[np.int64]

_CACHE_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}
_SCALE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
_FLOAT_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2, np.dtype(np.int8): 0}


class _Matrix(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
    )


class _DualPathMoE(ctypes.Structure):
    _fields_ = (
        ("group_widths", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("groups", "top_k", "norm_topk_prob", "bits", "block_size")),
        *((name, ctypes.c_int64) for name in ("tokens", "hidden", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "router", "shared_gate", "coefficient", "coefficient_bias")),
        *((name, _Matrix) for name in ("gate", "up", "down")),
        ("y", ctypes.c_void_p),
    )


class _BlockQuantLinear(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("bits", "block_size", "tokens", "columns", "rows", "threads")),
        ("x", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("weight", _Matrix),
        ("y", ctypes.c_void_p),
    )


class _BlockQuantMLP(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("bits", "block_size", "inner_block_size")),
        *((name, ctypes.c_int64) for name in ("tokens", "width", "inner", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "up_bias", "down_bias", "gate_bias")),
        *((name, _Matrix) for name in ("up", "down", "gate")),
        ("y", ctypes.c_void_p),
    )


class _CachedAttention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "heads", "kv_heads", "dim")),
        *((name, ctypes.c_int64) for name in ("cache_type", "slot_count", "capacity", "threads")),
        *((name, ctypes.c_void_p) for name in ("qkv", "cos", "sin", "slots", "positions")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "key_scales", "value_scales", "y")),
    )


class _SelfAttention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "heads", "dim", "bits", "windows", "threads")),
        *((name, ctypes.c_void_p) for name in ("qkv", "cos", "sin", "offsets", "y")),
    )


class _RoundBlocks(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("bits", "block_size", "rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("weight", "importance", "divisors")),
        *((name, ctypes.c_int64) for name in ("candidates", "scale_type")),
        *((name, ctypes.c_void_p) for name in ("codes", "scales")),
    )


class NativeLibrary:
    """Load the library at `path`; arrays must be C-contiguous."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.echovlm_available_kernels.restype = ctypes.c_char_p
        self._library.echovlm_kernel.restype = ctypes.c_char_p
        self._library.echovlm_read_bandwidth.restype = ctypes.c_double
        self._library.echovlm_int8_peak.restype = ctypes.c_double

    @property
    def available_kernels(self) -> tuple[str, ...]:
        """Return the names of the kernels that this computer can run, best first."""
        return tuple(self._library.echovlm_available_kernels().decode().split(","))

    @property
    def kernel(self) -> str:
        """Return the name of the kernels in use."""
        return str(self._library.echovlm_kernel().decode())

    @contextmanager
    def using(self, kernel: str) -> Iterator[None]:
        """Use these kernels inside the block.

        Raises:
            ValueError: this computer cannot run them.
        """
        before = self.kernel
        self.use(kernel)
        try:
            yield
        finally:
            self.use(before)

    def use(self, kernel: str) -> None:
        """Use these kernels from now on, for every caller of the library in this process.

        Raises:
            ValueError: this computer cannot run them.
        """
        if self._library.echovlm_set_kernel(kernel.encode()):
            raise ValueError(f"this computer cannot run the kernels {kernel}")

    def dual_path_moe(
        self,
        x: Floats,
        router: Floats,
        shared_gate: Floats,
        coefficient: Floats,
        coefficient_bias: Floats,
        weights: Sequence[StoredWeight],
        attributes: DualPathMoEAttributes,
        threads: int = 1,
    ) -> Floats:
        """Run DualPathMoE on tokens x [n, H]; `weights` are gate, up and down as stored.

        Raises:
            ValueError: the library refused the call; has the library's message.
        """
        y = np.empty_like(x)
        widths = np.array(attributes.group_widths, np.int64)
        call = _DualPathMoE(
            *(widths.ctypes.data, len(widths), attributes.top_k, attributes.norm_topk_prob),
            *(attributes.bits, attributes.block_size, *x.shape, threads),
            *(_floats(array) for array in (x, router, shared_gate, coefficient, coefficient_bias)),
            *(_matrix(weight) for weight in weights),
            y.ctypes.data,
        )
        self._call(self._library.echovlm_dual_path_moe, call)
        return y

    def block_quant_linear(
        self, x: Floats, weight: StoredWeight, bits: int, block_size: int, bias: Floats | None = None, threads: int = 1
    ) -> Floats:
        """Multiply X [n, K] by a weight [N, K]; returns [n, N].

        Raises:
            ValueError: the library refused the call; has the library's message.
        """
        rows = len(weight[0])
        y = np.empty((len(x), rows), np.float32)
        call = _BlockQuantLinear(
            *(bits, block_size, *x.shape, rows, threads),
            *(_floats(x), None if bias is None else _floats(bias), _matrix(weight), y.ctypes.data),
        )
        self._call(self._library.echovlm_block_quant_linear, call)
        return y

    def block_quant_mlp(
        self,
        x: Floats,
        up: StoredLinear,
        down: StoredLinear,
        bits: int,
        block_sizes: tuple[int, int],
        gate: StoredLinear | None = None,
        threads: int = 1,
    ) -> Floats:
        """Run BlockQuantMLP on tokens x [n, H]: down(quick_gelu(up x)), with a gate down(silu(gate x) * up x).

        `block_sizes` are those along the H columns of up and gate, and along the inner values that are down's columns.

        Raises:
            ValueError: the library refused the call; has the library's message.
        """
        y = np.empty_like(x)
        linears = (up, down, gate)
        call = _BlockQuantMLP(
            *(bits, *block_sizes, *x.shape, len(up[0][0]), threads, _floats(x)),
            *(None if linear is None or linear[1] is None else _floats(linear[1]) for linear in linears),
            *(_Matrix() if linear is None else _matrix(linear[0]) for linear in linears),
            y.ctypes.data,
        )
        self._call(self._library.echovlm_block_quant_mlp, call)
        return y

    def cached_attention(
        self,
        qkv: Floats,
        cos: Floats,
        sin: Floats,
        slots: Integers,
        positions: Integers,
        keys: NDArray[Any],
        values: NDArray[Any],
        heads: int,
        scales: tuple[Floats, Floats] | None = None,
        threads: int = 1,
    ) -> Floats:
        """CachedAttention, with the arguments of its numpy reference; writes into `keys` and `values`.

        Raises:
            ValueError: the library's own sentence.
        """
        slot_count, kv_heads, blocks, dim, block = keys.shape
        y = np.empty((len(qkv), heads * dim), np.float32)
        call = _CachedAttention(
            *(len(qkv), heads, kv_heads, dim, _CACHE_TYPES[keys.dtype], slot_count, blocks * block, threads),
            *(_floats(array) for array in (qkv, cos, sin)),
            *(slots.ctypes.data, positions.ctypes.data, keys.ctypes.data, values.ctypes.data),
            *((_floats(array) for array in scales) if scales else (None, None)),
            y.ctypes.data,
        )
        self._call(self._library.echovlm_cached_attention, call)
        return y

    def self_attention(
        self, qkv: Floats, cos: Floats, sin: Floats, offsets: Integers, heads: int, bits: int = 0, threads: int = 1
    ) -> Floats:
        """SelfAttention, with the arguments of its numpy reference; with `bits` 8 in bytes, where the kernels can.

        Raises:
            ValueError: the library's own sentence.
        """
        rows, width = qkv.shape
        y = np.empty((rows, width // 3), np.float32)
        call = _SelfAttention(
            *(rows, heads, width // 3 // heads, bits, len(offsets) - 1, threads),
            *(_floats(array) for array in (qkv, cos, sin)),
            *(offsets.ctypes.data, y.ctypes.data),
        )
        self._call(self._library.echovlm_self_attention, call)
        return y

    def round_blocks(
        self, weight: Floats, bits: int, block_size: int, importance: Floats | None, scale_type: DTypeLike
    ) -> tuple[NDArray[np.int8], NDArray[Any]]:
        """Round a weight with the same bits as `rounding.search_blocks`, on one thread.

        Raises:
            ValueError: the library's own sentence.
        """
        rows, columns = weight.shape
        codes = np.empty((rows, columns), np.int8)
        scales = np.empty((rows, columns // block_size), np.float32)
        divisors = DIVISORS[bits]
        call = _RoundBlocks(
            *(bits, block_size, rows, columns),
            *(_floats(weight), None if importance is None else _floats(importance), _floats(divisors)),
            *(len(divisors), _SCALE_TYPES[np.dtype(scale_type).name], codes.ctypes.data, scales.ctypes.data),
        )
        self._call(self._library.echovlm_round_blocks, call)
        return codes, scales.astype(scale_type)

    def read_bandwidth(self, data: NDArray[np.uint8], threads: int, runs: int = 1) -> float:
        """Measure the read bandwidth of threads over `data` in bytes a second, the best of `runs`."""
        return float(
            self._library.echovlm_read_bandwidth(
                ctypes.c_void_p(data.ctypes.data),
                ctypes.c_size_t(data.nbytes),
                ctypes.c_int64(threads),
                ctypes.c_int64(runs),
            )
        )

    def int8_peak(self, threads: int, runs: int = 1) -> float:
        """Measure int8 operations a second (a multiply-add is two) of the 4-bit kernels' dot products alone, the best of `runs`."""
        return float(self._library.echovlm_int8_peak(ctypes.c_int64(threads), ctypes.c_int64(runs)))

    @staticmethod
    def _call(function: Callable[..., int], call: ctypes.Structure) -> None:
        error = ctypes.create_string_buffer(512)
        if function(ctypes.byref(call), error, ctypes.c_size_t(len(error))):
            raise ValueError(error.value.decode())


def _floats(array: Floats) -> int:
    assert array.dtype == np.float32 and array.flags.c_contiguous
    return array.ctypes.data


def _matrix(weight: StoredWeight) -> _Matrix:
    values, scales = weight
    assert values.flags.c_contiguous and (scales is None or scales.flags.c_contiguous)
    half = scales is not None and scales.dtype == np.float16
    return _Matrix(values.ctypes.data, None if scales is None else scales.ctypes.data, _FLOAT_TYPES[values.dtype], half)
