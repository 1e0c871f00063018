"""Attention at the published widths compared with ONNX Runtime's own operators, in alternation in one run.

python -m benchmarks.attention [--threads N] [--runs N]

CachedAttention with GroupQueryAttention; SelfAttention in bytes with MultiHeadAttention, and with the split and the two rotary
embeddings that it replaces besides.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper
from rich.console import Console

from benchmarks.limits import installed_library
from echovlm_edge.plugins.attention.reference import transposed
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.resources.processors import usable_processors

HEADS, KV_HEADS, DIM = 28, 4, 128
VISION_HEADS, VISION_DIM = 16, 80
CAPACITY = 4352
TYPES = {
    np.float32: TensorProto.FLOAT,
    np.float16: TensorProto.FLOAT16,
    np.int8: TensorProto.INT8,
    np.int64: 7,
    np.int32: 6,
}

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """Median milliseconds of ours and of the others, in the order of their names."""

    what: str
    ours: float
    others: tuple[float, ...]


def bound(nodes: Sequence[Any], feeds: Arrays, outputs: Arrays, threads: int) -> Run:
    """Open a session of the nodes, whose inputs and outputs are these arrays, written in place."""

    def info(name: str, array: NDArray[Any]) -> Any:
        return helper.make_tensor_value_info(name, TYPES[array.dtype.type], array.shape)

    inputs, made = ([info(name, array) for name, array in some.items()] for some in (feeds, outputs))
    graph = helper.make_graph(nodes, "attention", inputs, made)
    opsets = [
        helper.make_opsetid(domain, version) for domain, version in (("", 23), ("com.microsoft", 1), ("echovlm", 1))
    ]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.spin_duration_us", "10")
    options.register_custom_ops_library(str(installed_library()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for name, array in outputs.items():
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    kept = (feeds, outputs)  # the binding has their addresses only

    def run() -> object:
        session.run_with_iobinding(binding)
        return kept

    return run


def alternating(runs: Sequence[Run], count: int) -> list[float]:
    """Median milliseconds of each, one call after the other in turn."""
    seconds: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(count):
        for run, times in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return [median(times) * 1e3 for times in seconds]


def cached(past: int, new: int, sequences: int, dtype: type[np.generic], threads: int, count: int) -> Row:
    """Append `new` tokens to each of some sequences with `past` tokens: GroupQueryAttention takes several of either, not of both."""
    random, rows, width = np.random.default_rng(0), new * sequences, (HEADS + 2 * KV_HEADS) * DIM
    qkv = random.standard_normal((rows, width), dtype=np.float32)
    shape = (sequences, KV_HEADS, CAPACITY, DIM)
    made = (random.integers(-127, 128, shape) if dtype is np.int8 else random.standard_normal(shape) for _ in range(2))
    keys, values = (array.astype(dtype) for array in made)
    scale = np.full(KV_HEADS * DIM, 0.02, np.float32)
    scales: Arrays = {"key_scales": scale, "value_scales": scale} if dtype is np.int8 else {}
    feeds: Arrays = {
        "qkv": qkv,
        "cos": np.ones((rows, DIM // 2), np.float32),
        "sin": np.zeros((rows, DIM // 2), np.float32),
        "slots": np.repeat(np.arange(sequences), new),
        "positions": np.tile(past + np.arange(new), sequences),
        "keys": transposed(keys),
        "values": values.copy(),
        **scales,
    }
    node = helper.make_node("CachedAttention", list(feeds), ["y"], domain="echovlm", heads=HEADS, kv_heads=KV_HEADS)
    ours = bound([node], feeds, {"y": np.empty((rows, HEADS * DIM), np.float32)}, threads)
    q, k, v = np.split(qkv.reshape(sequences, new, width), [HEADS * DIM, (HEADS + KV_HEADS) * DIM], axis=-1)
    theirs: Arrays = {
        **{name: np.ascontiguousarray(array) for name, array in (("q", q), ("k", k), ("v", v))},
        **{"keys": keys, "values": values},
        "last": np.full(sequences, past + new - 1, np.int32),
        "longest": np.array(past + new, np.int32),
        **scales,
    }
    quantized = (
        {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8} if scales else {}
    )
    inputs = [*list(theirs)[:7], *([""] * 5 if scales else []), *scales]
    attributes: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, **quantized}
    node = helper.make_node(
        "GroupQueryAttention", inputs, ["y", "written_keys", "written_values"], domain="com.microsoft", **attributes
    )
    outputs = {"y": np.empty((sequences, new, HEADS * DIM), np.float32), "written_keys": keys, "written_values": values}
    what = f"{sequences} x {new} at {past:,}, {np.dtype(dtype).name}"
    mine, other = alternating([ours, bound([node], theirs, outputs, threads)], count)
    return Row(what, mine, (other,))


def vision(patches: int, threads: int, count: int) -> Row:
    """One block's attention over all patches of an image."""
    random, width = np.random.default_rng(0), VISION_HEADS * VISION_DIM
    qkv = random.standard_normal((1, patches, 3 * width), dtype=np.float32)
    angles = random.uniform(-3, 3, (1, patches, VISION_DIM // 2)).astype(np.float32)
    feeds = {"qkv": qkv, "cos": np.cos(angles), "sin": np.sin(angles)}

    def made() -> Arrays:
        return {"y": np.empty((1, patches, width), np.float32)}

    own = helper.make_node("SelfAttention", list(feeds), ["y"], domain="echovlm", heads=VISION_HEADS, bits=8)
    attend = helper.make_node(
        "MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=VISION_HEADS
    )
    before = [
        helper.make_node("Split", ["qkv"], ["q0", "k0", "v"], axis=-1, num_outputs=3),
        *(
            helper.make_node("RotaryEmbedding", [f"{name}0", "cos", "sin"], [name], num_heads=VISION_HEADS)
            for name in ("q", "k")
        ),
    ]
    apart = dict(zip("qkv", (np.ascontiguousarray(part) for part in np.split(qkv, 3, axis=-1)), strict=True))
    runs = [
        bound([own], feeds, made(), threads),
        bound([attend], apart, made(), threads),
        bound([*before, attend], feeds, made(), threads),
    ]
    mine, *others = alternating(runs, count)
    return Row(f"{patches:,} patches", mine, tuple(others))


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Attention compared with ONNX Runtime's.")
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    console = Console()
    table = new_table(
        "CachedAttention, ms", names("sequences x tokens"), *map(figures, ("ours", "GroupQuery-\nAttention", "ratio"))
    )
    for dtype in (np.float32, np.float16, np.int8):
        for past, new, sequences in ((4096, 1, 1), (600, 1, 8), (2288, 512, 1)):
            row = cached(past, new, sequences, dtype, options.threads, options.runs)
            table.add_row(row.what, f"{row.ours:.2f}", f"{row.others[0]:.2f}", f"{row.others[0] / row.ours:.2f}")
    print_table(console, table)
    columns = ("ours", "MultiHead-\nAttention", "ratio", "with split\nand rotary", "ratio")
    table = new_table("SelfAttention of a vision block, ms", names("image"), *map(figures, columns))
    for patches in (784, 1564):
        row = vision(patches, options.threads, options.runs)
        ratios = (cell for other in row.others for cell in (f"{other:.1f}", f"{other / row.ours:.2f}"))
        table.add_row(row.what, f"{row.ours:.1f}", *ratios)
    print_table(console, table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
