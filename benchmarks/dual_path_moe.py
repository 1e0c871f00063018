"""Compare DualPathMoE at the published width with its alternatives, alternating in one run.

python benchmarks/dual_path_moe.py [--json F] [--plot F.png] [--decoder BUNDLE]
python benchmarks/dual_path_moe.py --blocks             # ours alone, in blocks of 128, 64 and 32: the bytes a second of each
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from torch.nn import functional

from benchmarks.limits import Limits, Machine, installed_library
from echovlm_edge.plugins.dual_path_moe.reference import Floats
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.contracts.tables import figures, new_table, print_table
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary
from echovlm_edge.runtime.resources.processors import usable_processors

HIDDEN = 3584
DENSE, SHARED, EXPERT, EXPERTS, TOP_K = 18944, 5632, 1408, 4, 2
WIDTHS = (DENSE, SHARED, *(EXPERT,) * EXPERTS)
BITS, BLOCK = 4, 128
BLOCKS = (128, 64, 32)
BLOCK_TOKENS = (1, 8, 64, 256)
TOKENS = (1, 2, 4, 8, 32, 64, 256, 1024)
COLD_BYTES = 256 << 20  # bytes of weights that one call reads: many times larger than any cache
PREFILL, DECODE = 256, 32
OURS, RUNTIME, TORCH_FP32, TORCH_BF16 = "ours", "onnxruntime", "torch_fp32", "torch_bf16"

Run = Callable[[Floats], object]


@dataclass(frozen=True)
class Row:
    """One implementation at one number of tokens; `gbps` counts the bytes of packed weights that these tokens need."""

    impl: str
    tokens: int
    ms: float
    gbps: float
    gops: float


@dataclass(frozen=True)
class DecoderRow:
    """One phase of a decoder, with the share of its time that is not DualPathMoE."""

    phase: str
    tokens_per_second: float
    share_outside_moe: float


@dataclass(frozen=True)
class Packed:
    """Make a random int4 weight: INT8 [N, K / 2] and scales [N, K / block], about as large as trained weights."""

    values: np.ndarray
    scales: Floats

    @classmethod
    def random(cls, generator: np.random.Generator, rows: int, columns: int, block: int) -> Packed:
        values = generator.integers(0, 256, (rows, columns // 2), dtype=np.uint8).view(np.int8)
        scales = (0.5 + generator.random((rows, columns // block), dtype=np.float32)) / (4 * math.sqrt(columns))
        return cls(values, scales.astype(np.float32))

    def rows(self, start: int, end: int) -> Packed:
        return Packed(self.values[start:end], self.scales[start:end])

    def columns(self, start: int, end: int) -> Packed:
        return Packed(self.values[:, start // 2 : end // 2], self.scales[:, start // BLOCK : end // BLOCK])


@dataclass(frozen=True)
class Layer:
    """One layer's weights, `block` of which share a scale."""

    router: Floats
    shared_gate: Floats
    coefficient: Floats
    coefficient_bias: Floats
    gate: Packed
    up: Packed
    down: Packed
    block: int = BLOCK

    @classmethod
    def random(cls, seed: int, block: int = BLOCK) -> Layer:
        generator = np.random.default_rng(seed)
        total = sum(WIDTHS)

        def small(*shape: int) -> Floats:
            return (generator.standard_normal(shape) / math.sqrt(HIDDEN)).astype(np.float32)

        shapes = ((total, HIDDEN), (total, HIDDEN), (HIDDEN, total))
        gate, up, down = (Packed.random(generator, *shape, block) for shape in shapes)
        return cls(small(EXPERTS, HIDDEN), small(1, HIDDEN), small(2, HIDDEN), small(2), gate, up, down, block)

    def group(self, index: int) -> tuple[Packed, Packed, Packed]:
        start = sum(WIDTHS[:index])
        end = start + WIDTHS[index]
        return self.gate.rows(start, end), self.up.rows(start, end), self.down.columns(start, end)


class Graph:
    """An ONNX graph that is being built."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray) -> str:
        name = f"c{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op_type: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self._nodes)}.{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(op_type, inputs, names, domain=domain, **attributes))
        return names[0]

    def session(self, output: str, threads: int, path: Path) -> ort.InferenceSession:
        """Open a session of the model written to `path`, with memory-mapped weights in a separate file, as in a bundle."""
        tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", HIDDEN]) for name in ("x", output)]
        graph = helper.make_graph(self._nodes, "layer", tensors[:1], tensors[1:], self._initializers)
        domains = {"": 24, "com.microsoft": 1, "echovlm": 1}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.stem}.data")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.register_custom_ops_library(str(installed_library()))
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def whole_session(layers: list[Layer], threads: int, node: Callable[[Graph, Layer], str], path: Path) -> Run:
    """Open one session in which x passes through every layer independently, so that each layer has left the caches when it runs again.

    One session and not one for each, because an idle session's threads keep spinning for a while.
    """
    graph = Graph()
    outputs = [node(graph, layer) for layer in layers]
    session = graph.session(graph.node("Sum", *outputs), threads, path)
    return lambda x: session.run(None, {"x": x})


def ours(graph: Graph, layer: Layer) -> str:
    """Make a graph of one DualPathMoE node with float16 scales, as in a bundle; ONNX Runtime's own operators need scales of x's type."""
    small = (layer.router, layer.shared_gate, layer.coefficient, layer.coefficient_bias)
    weights = (layer.gate, layer.up, layer.down)
    arrays = (*small, *(weight.values for weight in weights), *(weight.scales.astype(np.float16) for weight in weights))
    inputs = ["x", *map(graph.constant, arrays)]
    attributes: dict[str, Any] = {
        "group_widths": list(WIDTHS),
        "top_k": TOP_K,
        "norm_topk_prob": 0,
        "bits": BITS,
        "block_size": layer.block,
    }
    return graph.node("DualPathMoE", *inputs, domain="echovlm", **attributes)


def onnxruntime_composition(graph: Graph, layer: Layer) -> str:
    """Make the fastest graph of ONNX Runtime's own operators: QMoE for the routed experts, MatMulNBits at accuracy level 4 for the rest."""

    def product(x: str, weight: Packed) -> str:
        rows, blocks = weight.scales.shape
        stored = graph.constant(weight.values.view(np.uint8).reshape(rows, blocks, BLOCK // 2))
        attributes: dict[str, Any] = {
            "N": rows,
            "K": blocks * BLOCK,
            "bits": BITS,
            "block_size": BLOCK,
            "accuracy_level": 4,
        }
        return graph.node("MatMulNBits", x, stored, graph.constant(weight.scales), domain="com.microsoft", **attributes)

    def swiglu(index: int) -> str:
        gate, up, down = layer.group(index)
        gated = product("x", gate)
        active = graph.node("Mul", graph.node("QuickGelu", gated, domain="com.microsoft", alpha=1.0), product("x", up))
        return product(active, down)

    def small(weight: Floats) -> str:
        return graph.node("MatMul", "x", graph.constant(weight.T))

    mixed = graph.node("Softmax", graph.node("Add", small(layer.coefficient), graph.constant(layer.coefficient_bias)))
    c_moe, c_dense = (graph.node("Gather", mixed, graph.constant(np.array([i])), axis=1) for i in range(2))
    shared = graph.node("Mul", graph.node("Sigmoid", small(layer.shared_gate)), swiglu(1))
    moe = graph.node("Add", _qmoe(graph, layer, small(layer.router)), shared)
    return graph.node("Add", graph.node("Mul", c_moe, moe), graph.node("Mul", c_dense, swiglu(0)))


def _qmoe(graph: Graph, layer: Layer, logits: str) -> str:
    experts = [layer.group(2 + index) for index in range(EXPERTS)]

    def interleaved(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        return np.stack((gate, up), axis=1).reshape(2 * len(gate), -1)

    inputs = (
        np.stack([interleaved(gate.values, up.values) for gate, up, _ in experts]).view(np.uint8),
        np.stack([interleaved(gate.scales, up.scales) for gate, up, _ in experts]),
        np.stack([np.ascontiguousarray(down.values) for _, _, down in experts]).view(np.uint8),
        np.stack([down.scales for _, _, down in experts]),
    )
    first, first_scales, second, second_scales = map(graph.constant, inputs)
    attributes: dict[str, Any] = {
        "activation_type": "swiglu",
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "swiglu_fusion": 1,
        "expert_weight_bits": BITS,
        "block_size": BLOCK,
        "k": TOP_K,
        "normalize_routing_weights": 0,
    }
    return graph.node(
        *("QMoE", "x", logits, first, first_scales, "", second, second_scales), domain="com.microsoft", **attributes
    )


def torch_eager(seed: int, threads: int, dtype: torch.dtype) -> Run:
    """Compute the formula in eager PyTorch, with floating-point weights of the same shapes."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / math.sqrt(columns)).to(dtype)

    groups = [(weight(width, HIDDEN), weight(width, HIDDEN), weight(HIDDEN, width)) for width in WIDTHS]
    router, shared_gate, coefficient = (weight(rows, HIDDEN) for rows in (EXPERTS, 1, 2))

    def swiglu(x: torch.Tensor, group: int) -> torch.Tensor:
        gate, up, down = groups[group]
        return functional.linear(functional.silu(functional.linear(x, gate)) * functional.linear(x, up), down)

    @torch.inference_mode()
    def run(array: Floats) -> object:
        x = torch.from_numpy(array).to(dtype)
        mixed = functional.linear(x, coefficient).softmax(-1)
        kept, chosen = functional.linear(x, router).softmax(-1, dtype=torch.float32).topk(TOP_K)
        moe = torch.sigmoid(functional.linear(x, shared_gate)) * swiglu(x, 1)
        for expert in range(EXPERTS):
            token, choice = (chosen == expert).nonzero(as_tuple=True)
            if len(token):
                moe = moe.index_add(0, token, kept[token, choice, None].to(dtype) * swiglu(x[token], 2 + expert))
        return mixed[:, :1] * moe + mixed[:, 1:] * swiglu(x, 0)

    return run


def weight_bytes(layer: Layer, x: Floats) -> int:
    """Count the packed weights that these tokens read: experts that no token selected are not read."""
    chosen = np.argsort(-(x @ layer.router.T), axis=-1, kind="stable")[:, :TOP_K]
    inner = DENSE + SHARED + EXPERT * len(np.unique(chosen))
    return 3 * HIDDEN * inner * BITS // 8 + 3 * HIDDEN * inner // layer.block * 2


def operations(tokens: int) -> int:
    """Count the multiplications and additions of the products."""
    return 2 * tokens * 3 * HIDDEN * (DENSE + SHARED + TOP_K * EXPERT)


def measure(
    layers: list[Layer], threads: int, tokens: tuple[int, ...], runs: int, folder: Path
) -> tuple[Machine, list[Row]]:
    """Measure the machine, then every implementation in alternation at each number of tokens; medians."""
    candidates = {
        OURS: (whole_session(layers, threads, ours, folder / "ours.onnx"), len(layers)),
        RUNTIME: (whole_session(layers, threads, onnxruntime_composition, folder / "composition.onnx"), len(layers)),
        TORCH_FP32: (torch_eager(0, threads, torch.float32), 1),  # one layer is already larger than COLD_BYTES
        TORCH_BF16: (torch_eager(0, threads, torch.bfloat16), 1),
    }
    limits = Limits(threads, folder / "ours.data")
    rows = []
    generator = np.random.default_rng(1)
    for count in tokens:
        x = generator.standard_normal((count, HIDDEN), dtype=np.float32)
        needed = median(weight_bytes(layer, x) for layer in layers)
        for impl, seconds in _turns(candidates, x, runs if count < 64 else max(3, runs // 5), limits).items():
            rows.append(Row(impl, count, seconds * 1e3, needed / seconds / 1e9, operations(count) / seconds / 1e9))
    return limits.machine(), rows


def measure_blocks(threads: int, tokens: tuple[int, ...], runs: int, folder: Path, console: Console) -> None:
    """Print the bytes a second of our operator in blocks of each size, in alternation, and their ratio to the first."""
    layers = {block: _cold_layers(block) for block in BLOCKS}
    candidates = {
        str(block): (whole_session(some, threads, ours, folder / f"block-{block}.onnx"), len(some))
        for block, some in layers.items()
    }
    limits = Limits(threads, folder / f"block-{BLOCK}.data")
    table = new_table("", figures("tokens"), *(figures(f"block {block},\nGB/s") for block in BLOCKS))
    generator = np.random.default_rng(1)
    for count in tokens:
        x = generator.standard_normal((count, HIDDEN), dtype=np.float32)
        seconds = _turns(candidates, x, runs if count < 64 else max(3, runs // 5), limits)
        rates = [median(weight_bytes(layer, x) for layer in layers[block]) / seconds[str(block)] for block in BLOCKS]
        table.add_row(f"{count}", *(f"{rate / 1e9:.2f}\n{rate / rates[0]:.2f}x" for rate in rates))
    machine = limits.machine()
    table.title = (
        f"DualPathMoE, int4, scales included, {machine.cpu}, {threads} threads: reads {machine.read_gbps:.1f} GB/s"
    )
    print_table(console, table)


def _cold_layers(block: int = BLOCK) -> list[Layer]:
    """Make layers of COLD_BYTES together."""
    one = Layer.random(0, block)
    bytes_of_layer = sum(weight.values.nbytes for weight in (one.gate, one.up, one.down))
    return [one, *(Layer.random(seed, block) for seed in range(1, math.ceil(COLD_BYTES / bytes_of_layer)))]


def _turns(candidates: dict[str, tuple[Run, int]], x: Floats, count: int, limits: Limits) -> dict[str, float]:
    """Measure median seconds per layer; implementations alternate every few calls, so that noise affects them equally."""
    seconds: dict[str, list[float]] = {impl: [] for impl in candidates}
    for turn in range(3):
        for impl, (run, layers) in candidates.items():
            eager = impl in (TORCH_FP32, TORCH_BF16)  # many times as long as the others
            if turn == 0 or not eager:
                run(x)
            for _ in range(1 if eager else math.ceil(count / 3)):
                started = time.perf_counter()
                run(x)
                seconds[impl].append((time.perf_counter() - started) / layers)
            limits.read()
    return {impl: median(times) for impl, times in seconds.items()}


def measure_decoder(bundle: Bundle, threads: int) -> list[DecoderRow]:
    """Measure decode and prefill of a bundle's decoder as it is served, with ONNX Runtime's own profile of its nodes."""
    spec, generator = bundle.manifest.model, np.random.default_rng(0)
    rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
    rows = []
    for phase, tokens, past, calls in (("prefill", PREFILL, 0, 3), ("decode", 1, PREFILL, DECODE)):
        backend = OnnxRuntimeBackend(bundle, threads, profile=True)
        cache = new_cache(backend, PREFILL + 1)
        embeddings = generator.standard_normal((tokens, spec.hidden_size), dtype=np.float32)
        angles = rotary.angles(np.tile(past + np.arange(tokens), (3, 1)))
        seconds = []
        for _ in range(calls + 1):
            started = time.perf_counter()
            backend.decode(embeddings, angles, past, np.array([tokens - 1]), cache)
            seconds.append(time.perf_counter() - started)
        runs = backend.operator_times()["decoder"]
        inside = sum(node.seconds for run in runs for node in run if node.kind == "DualPathMoE")
        share = 1 - inside / sum(seconds)
        rows.append(DecoderRow(phase, tokens / median(seconds[1:]), share))
    return rows


def print_rows(machine: Machine, rows: list[Row], decoder: list[DecoderRow], console: Console) -> None:
    """Print milliseconds, the ratio to ours, and how close ours comes to the machine's limits."""
    title = (
        f"DualPathMoE, int4 block {BLOCK}, {machine.cpu}, {machine.threads} threads: "
        f"reads {machine.read_gbps:.1f} GB/s, int8 peak {machine.int8_gops:.0f} GOP/s"
    )
    table = new_table(title, *map(figures, ("tokens", "ours,\nms", "ORT", "fp32", "bf16", "GB/s", "GOP/s")))
    for tokens in sorted({row.tokens for row in rows}):
        by_impl = {row.impl: row for row in rows if row.tokens == tokens}
        mine = by_impl[OURS]
        others = (
            f"{by_impl[impl].ms:,.2f}\n{by_impl[impl].ms / mine.ms:.2f}x" for impl in (RUNTIME, TORCH_FP32, TORCH_BF16)
        )
        limits = (
            f"{mine.gbps:.1f}\n{mine.gbps / machine.read_gbps:.0%}",
            f"{mine.gops:.0f}\n{mine.gops / machine.int8_gops:.0%}",
        )
        table.add_row(f"{tokens}", f"{mine.ms:,.2f}", *others, *limits)
    print_table(console, table)
    for row in decoder:
        console.print(
            f"{row.phase}: {row.tokens_per_second:.1f} tokens/s, {row.share_outside_moe:.1%} outside DualPathMoE"
        )


def plot(machine: Machine, rows: list[Row], path: Path) -> None:
    """Plot operations a second over the number of tokens, with the machine's two limits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5))
    labels = {
        OURS: "DualPathMoE",
        RUNTIME: "QMoE + MatMulNBits",
        TORCH_FP32: "PyTorch float32",
        TORCH_BF16: "PyTorch bfloat16",
    }
    for impl, label in labels.items():
        mine = [row for row in rows if row.impl == impl]
        axes.plot([row.tokens for row in mine], [row.gops for row in mine], marker="o", label=label)
    ours_rows = [row for row in rows if row.impl == OURS]
    roof = [min(machine.int8_gops, row.gops * machine.read_gbps / row.gbps) for row in ours_rows]
    axes.plot([row.tokens for row in ours_rows], roof, "k--", linewidth=1, label="limit: read bandwidth, int8 peak")
    axes.set(
        xscale="log", yscale="log", xlabel="tokens", ylabel="GOP/s", title=f"One layer, int4, {machine.threads} threads"
    )
    axes.set_xscale("log", base=2)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(
        description="Time DualPathMoE compared with ONNX Runtime's own operators and PyTorch."
    )
    parser.add_argument("--tokens", type=int, **SEVERAL)
    parser.add_argument("--blocks", action="store_true", help="ours alone, in blocks of several sizes")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--decoder", type=Path, metavar="BUNDLE", help="a bundle whose decoder is measured as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.blocks:
            chosen = tuple(options.tokens or BLOCK_TOKENS)
            measure_blocks(options.threads, chosen, options.runs, Path(folder), Console())
            return 0
        machine, rows = measure(
            _cold_layers(), options.threads, tuple(options.tokens or TOKENS), options.runs, Path(folder)
        )
    decoder = measure_decoder(Bundle(options.decoder), options.threads) if options.decoder else []
    print_rows(machine, rows, decoder, Console())
    if options.json:
        report = {
            "machine": asdict(machine),
            "rows": [asdict(row) for row in rows],
            "decoder": [asdict(row) for row in decoder],
        }
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if options.plot:
        plot(machine, rows, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
