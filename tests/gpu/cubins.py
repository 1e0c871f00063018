"""The archive of cubins and their launches, in Python: read and launched as plugins/dual_path_moe/cuda/README.md says.

Written from that page alone, so that the page, the kernels and the C++ launcher can be told apart when they disagree.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echovlm_edge.plugins.dual_path_moe.cuda.planner import Launch, Plan, Tile
from echovlm_edge.plugins.dual_path_moe.library import plugin_path
from echovlm_edge.runtime.doctor.acceptance.checks.device_tests import TESTED_PLUGIN

HEADER = struct.Struct("<8sIIIIQ32s")
RECORD = struct.Struct("<32s64s12IQQ32s")
ANY = 0xFFFFFFFF
POINTERS = {  # in the order of the parameters; scalars follow, then two null pointers
    "route": ("x", "router", "shared_gate", "coefficient", "coefficient_bias", "group_weights"),
    "sort": ("group_weights", "expert_tokens", "expert_counts"),
    "gate_up_decode": ("x", "gate", "up", "gate_scale", "up_scale", "group_weights", "inner"),
    "gate_up_prefill": (
        *("x", "gate", "up", "gate_scale", "up_scale", "group_weights", "expert_tokens", "expert_counts", "inner"),
    ),
    "down_decode": ("inner", "down", "down_scale", "group_weights", "parts"),
    "sum_parts": ("parts", "y"),
    "down_prefill": ("inner", "down", "down_scale", "group_weights", "parts", "y"),
}


@dataclass(frozen=True)
class Record:
    """One compiled kernel."""

    kernel: str
    entry: str
    sm: int
    activation: int
    bits: int
    block_size: int
    experts_limit: int
    tile: Tile
    num_warps: int
    shared_bytes: int
    parameters: int
    cubin: bytes


def plugin_to_test() -> Path | None:
    """The plugin library of the bundle that `echovlm-accept` was given, or the installed one."""
    named = os.environ.get(TESTED_PLUGIN)
    return Path(named) if named else plugin_path()


def has_kernels(compute_capability: int) -> bool:
    """Whether that library has kernels for GPUs of a compute capability, such as 87."""
    path = plugin_to_test()
    return path is not None and ctypes.CDLL(str(path)).echovlm_has_kernels(ctypes.c_int64(compute_capability)) == 1


def embedded_archive() -> bytes:
    """The archive in the plugin library; nothing where there is no library, or one without kernels."""
    path = plugin_to_test()
    if path is None:
        return b""
    function = ctypes.CDLL(str(path)).echovlm_embedded_archive
    function.restype, size = ctypes.c_void_p, ctypes.c_size_t()
    address = function(ctypes.byref(size))
    return ctypes.string_at(address, size.value) if address else b""


def read_archive(archive: bytes) -> list[Record]:
    """Every record of an archive."""
    magic, version, count, size, first, total, _ = HEADER.unpack_from(archive)
    assert magic == b"ECHOCUBN" and version == 1 and size == RECORD.size and total == len(archive)
    return [_record(archive, RECORD.unpack_from(archive, first + size * index)) for index in range(count)]


def _record(archive: bytes, values: tuple[Any, ...]) -> Record:
    kernel, entry = (text.split(b"\0")[0].decode("ascii") for text in values[:2])
    sm, activation, bits, block_size, limit, tokens, rows, _, warps, shared, _, parameters = values[2:14]
    offset, length = values[14:16]
    assert offset % 64 == 0 and archive[offset : offset + 4] == b"\x7fELF"
    tile = Tile(tokens, rows)
    cubin = archive[offset : offset + length]
    return Record(kernel, entry, sm, activation, bits, block_size, limit, tile, warps, shared, parameters, cubin)


def serving(records: list[Record], sm: int) -> list[Record]:
    """The records that a device of that compute capability runs."""
    found = {record.sm for record in records if record.sm // 10 == sm // 10 and record.sm <= sm}
    chosen = sm if sm in found else max(found, default=0) if sm < 90 else 0
    return [record for record in records if record.sm == chosen]


def prefill_tiles(records: list[Record], activation: int, bits: int, block: int) -> list[int]:
    """The tactics for long prompts: the tiles, in tokens, that both prefill kernels of those types have, the smallest first."""
    tiles = (
        {
            record.tile.tokens
            for record in records
            if (record.kernel, record.activation, record.bits, record.block_size) == (kernel, activation, bits, block)
        }
        for kernel in ("gate_up_prefill", "down_prefill")
    )
    return sorted(set.intersection(*tiles))


@dataclass(frozen=True)
class Kernels:
    """A device's records for one operator: those of its types, of one prefill tile, with room for its experts."""

    records: Mapping[str, Record]

    @classmethod
    def of(cls, records: list[Record], activation: int, bits: int, block: int, experts: int, tokens: int) -> Kernels:
        """Choose; `tokens` is the prefill kernels' tile."""
        fits = [
            record
            for record in records
            if record.activation in (activation, ANY)
            and record.bits in (bits, ANY)
            and record.block_size in (block, ANY)
            and record.experts_limit >= experts
            and (not record.kernel.endswith("_prefill") or record.tile.tokens == tokens)
        ]
        fits.sort(key=lambda record: -record.experts_limit)  # the smallest comes last and stays
        return cls({record.kernel: record for record in fits})

    def tile(self, kernel: str) -> Tile:
        """What the planner asks."""
        return self.records[kernel].tile


class Launcher:
    """Launches a plan's kernels by the CUDA driver, on tensors given by device address."""

    def __init__(self, driver: Any, kernels: Kernels, stream: Any) -> None:
        self._driver, self._kernels, self._stream = driver, kernels, stream
        self._functions = {name: self._load(record) for name, record in kernels.records.items()}

    def run(self, plan: Plan, tensors: Mapping[str, int], workspace: int) -> None:
        """Queue a plan's launches; `tensors` by name, those that are absent are null."""
        addresses = {**tensors, **{buffer.name: workspace + buffer.offset for buffer in plan.buffers}}
        for launch in plan.launches:
            self._launch(launch, addresses)

    def _launch(self, launch: Launch, addresses: Mapping[str, int]) -> None:
        record = self._kernels.records[launch.kernel]
        pointers = [addresses.get(name, 0) for name in POINTERS[launch.kernel]]
        values = (*pointers, *launch.scalars, 0, 0)
        types = (*[ctypes.c_void_p] * len(pointers), *[ctypes.c_int32] * len(launch.scalars), *[ctypes.c_void_p] * 2)
        assert len(values) == record.parameters, f"{launch.kernel} takes {record.parameters} parameters"
        threads = (32 * record.num_warps, 1, 1)
        self._call(
            "cuLaunchKernel",
            self._functions[launch.kernel],
            *(*launch.grid, 1),
            *threads,
            record.shared_bytes,
            self._stream,
            (values, types),
            0,
        )

    def _load(self, record: Record) -> Any:
        module = self._call("cuModuleLoadData", record.cubin)
        function = self._call("cuModuleGetFunction", module, record.entry.encode())
        if record.shared_bytes > 48 << 10:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, attribute, record.shared_bytes)
        return function

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._driver, name)(*arguments)
        assert status == self._driver.CUresult.CUDA_SUCCESS, f"{name}: {status}"
        return results[0] if results else None
