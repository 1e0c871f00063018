"""DualPathMoE for ONNX Runtime's CUDA provider, without a GPU: in real sessions on the CPU, and in the library as it is installed.

The kernel's test build is registered for the CPU's provider; the driver is a stand-in, whose launches run in numpy. tests/native/
cuda_kernel_driver.cpp has what takes a stand-in for ONNX Runtime, too, such as failing allocations; here without sanitizers, and with
them by `make test-native`. What a GPU computes is for tests/gpu.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from echovlm_edge.export.bundle.journal import Journal
from echovlm_edge.export.bundle.part import write_part
from echovlm_edge.export.bundle.planned_bundle import lower_parts
from echovlm_edge.export.engines import onnxruntime_cuda
from echovlm_edge.export.graph.lower import Rule
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.targets import target
from echovlm_edge.export.weights.quantize import PrecisionPolicy
from echovlm_edge.export.weights.weight_file import write_weights
from echovlm_edge.plugins.dual_path_moe import gpu_kernels
from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.reference import (
    DualPathMoEAttributes,
    dequantize_blocks,
    dual_path_moe,
    quantize_blocks,
)
from echovlm_edge.plugins.dual_path_moe.rounding import plain_blocks
from tests.support.cuda_kernel_session import in_session
from tests.support.numpy_kernels import NumpyKernels
from tests.support.traces import shared_parts

ROOT = Path(__file__).parents[2]
HIDDEN, WIDTHS = 192, (384, 256, 128, 128, 128, 128)
BLOCK = 64  # divides every width, so that spelled out has no larger blocks
DECODE = ["route", "gate_up_decode", "down_decode", "sum_parts"]
PREFILL = ["route", "sort", "gate_up_prefill", "down_prefill"]  # of many tokens, whose columns of down are in one part
SPLIT = [*PREFILL, "sum_parts"]
TYPES = {"fp16": (np.float16, TensorProto.FLOAT16), "bf16": (ml_dtypes.bfloat16, TensorProto.BFLOAT16)}
# Of the output's norm: x, the inner values and the output are rounded once each, and the router's inputs.
TOLERANCE = {"fp16": 2e-3, "bf16": 1.6e-2}

needs_library = pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the test builds: kernel, drivers, and the stand-in for CUDA's driver."""
    if not (shutil.which("cmake") and shutil.which("c++")):
        pytest.skip("needs cmake and a C++ compiler")
    build = ROOT / "build" / "native-cuda-kernel"
    targets = ["cuda_kernel_driver", "cuda_kernel_on_cpu", "cuda_driver_double"]
    for command in (
        ["cmake", "-S", ROOT / "plugins" / "dual_path_moe" / "onnxruntime", "-B", build, "-DECHOVLM_NATIVE_TESTS=ON"],
        ["cmake", "--build", build, "--parallel", "2", "--target", *targets],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


class Operator:
    """Random weights: as a graph of one node, float32 outside, and as the reference."""

    def __init__(self, kind: str, bits: int, block_size: int, norm_topk_prob: bool = False) -> None:
        self.half, self.type = TYPES[kind]
        self.attributes = DualPathMoEAttributes(WIDTHS, 2, norm_topk_prob, bits, block_size)
        random = np.random.default_rng(0)

        def normal(*size: int) -> NDArray[np.float32]:
            return (random.standard_normal(size, np.float32) / np.sqrt(np.float32(size[-1]))).astype(np.float32)

        experts, total = len(WIDTHS) - 2, sum(WIDTHS)
        small = {
            "router": normal(experts, HIDDEN) * 3,
            "shared_gate": normal(1, HIDDEN),
            "coefficient": normal(2, HIDDEN),
            "coefficient_bias": normal(2),
        }
        self.stored: dict[str, NDArray[Any]] = {name: value.astype(self.half) for name, value in small.items()}
        self.exact = {name: value.astype(np.float64) for name, value in self.stored.items()}
        scales = {}
        for name, size in {"gate": (total, HIDDEN), "up": (total, HIDDEN), "down": (HIDDEN, total)}.items():
            if bits:
                self.stored[name], scales[f"{name}_scale"] = quantize_blocks(normal(*size), bits, block_size)
                self.exact[name] = dequantize_blocks(self.stored[name], scales[f"{name}_scale"], bits).astype(
                    np.float64
                )
            else:
                self.stored[name] = normal(*size).astype(self.half)
                self.exact[name] = self.stored[name].astype(np.float64)
        self.stored |= scales

    @property
    def kernels(self) -> NumpyKernels:
        return NumpyKernels(self.half, self.attributes.bits, self.attributes.block_size)

    def graph(self, stored: dict[str, NDArray[Any]] | None = None, **changed: object) -> bytes:
        """The graph, with other weights or attributes."""
        stored, attributes = stored or self.stored, self.attributes
        given: dict[str, object] = {
            "group_widths": list(attributes.group_widths),
            "top_k": attributes.top_k,
            "norm_topk_prob": int(attributes.norm_topk_prob),
            "bits": attributes.bits,
            "block_size": attributes.block_size,
        }
        nodes = [
            helper.make_node("Cast", ["x"], ["half_x"], to=self.type),
            helper.make_node(
                "DualPathMoE", ["half_x", *stored], ["half_y"], "moe", domain="echovlm", **(given | changed)
            ),
            helper.make_node("Cast", ["half_y"], ["y"], to=TensorProto.FLOAT),
        ]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", HIDDEN]) for name in "xy"]
        weights = [numpy_helper.from_array(array, name) for name, array in stored.items()]
        graph = helper.make_graph(nodes, "one", ends[:1], ends[1:], weights)
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString()

    def expected(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        values = x.reshape(-1, HIDDEN).astype(self.half).astype(np.float64)
        return dual_path_moe(values, **self.exact, attributes=self.attributes).reshape(x.shape)  # type: ignore[arg-type, return-value]


def tokens(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((*shape, HIDDEN), np.float32)


def relative_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("bits", "block"), [(0, 0), (4, 64)], ids=["float", "int4"])
def test_a_session_computes_the_operator(built: Path, kind: str, bits: int, block: int) -> None:
    """Every kernel gets its parameters, and scratch memory that nothing else uses: it is poisoned before each call."""
    operator = Operator(kind, bits, block, norm_topk_prob=bits == 0)
    xs = [tokens(*shape) for shape in ((1, 1), (1, 16), (3, 5), (1, 17), (8, 8), (2, 70), (1, 1))]
    outcome = in_session(built, operator.graph(), [{"x": x} for x in xs], operator.kernels)
    assert not outcome.error
    assert outcome.launches == [DECODE, DECODE, DECODE, SPLIT, SPLIT, PREFILL, DECODE]
    for x, y in zip(xs, outcome.outputs, strict=True):
        assert y.shape == x.shape
        assert relative_error(y, operator.expected(x)) < TOLERANCE[kind], x.shape
    np.testing.assert_array_equal(outcome.outputs[0], outcome.outputs[-1])


def test_no_tokens_launch_nothing(built: Path) -> None:
    operator = Operator("fp16", 4, 64)
    outcome = in_session(built, operator.graph(), [{"x": tokens(2, 0)}], operator.kernels)
    assert outcome.launches == [[]] and outcome.outputs[0].shape == (2, 0, HIDDEN)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("router", lambda a: a.astype(np.float32), "router is FLOAT, but it must be HALF."),
        ("gate", lambda a: a.view(np.uint8), "gate is of another type, but it must be INT8."),
        ("up_scale", lambda a: a.astype(np.float16), "up_scale is HALF, but it must be FLOAT."),
        ("down", lambda a: a[:, 1:], "down has shape [192, 575], but it must have [192, 576]."),
        ("coefficient", lambda a: a.T, "coefficient has shape [192, 2], but it must have [2, 192]."),
    ],
)
def test_a_wrong_weight_is_refused_by_name(built: Path, name: str, change: Any, sentence: str) -> None:
    operator = Operator("fp16", 4, 64)
    model = operator.graph({**operator.stored, name: np.ascontiguousarray(change(operator.stored[name]))})
    outcome = in_session(built, model, [{"x": tokens(1, 2)}], operator.kernels)
    assert f"DualPathMoE: {sentence}" in outcome.error and outcome.launches == [[]]


def test_wrong_attributes_are_refused_while_the_session_is_made(built: Path) -> None:
    operator = Operator("fp16", 4, 64)
    outcome = in_session(built, operator.graph(bits=8), [{"x": tokens(1, 2)}], operator.kernels)
    assert "DualPathMoE: bits 8 is neither 0 nor 4." in outcome.error and outcome.launches == []


def decoder(folder: Path, rules: Mapping[str, Rule]) -> Path:
    """The demo's decoder as a graph for a GPU, int4; rounded so that its codes do not depend on the type of its scales."""
    policy, chosen = PrecisionPolicy.of("int4", BLOCK, "float16"), replace(target("cuda"), rules=rules)
    checkpoint = Checkpoint(ROOT / "demo" / "checkpoint")
    (part,) = (part for part in lower_parts(checkpoint, policy, chosen, shared_parts) if part.name == "decoder")
    folder.mkdir()
    write_weights(folder, [part.file], checkpoint, Journal(folder, "decoder"), lambda _: None, lambda _: plain_blocks)
    write_part(folder, "decoder", "int4", part.model, part.stored, part.file)
    return folder / "decoder.onnx"


def test_a_decoder_computes_what_it_does_spelled_out(built: Path, tmp_path: Path) -> None:
    """The graph that the build lowers, all layers; its weights have float32 scales, and float16 ones spelled out."""
    native = decoder(tmp_path / "native", onnxruntime_cuda.NATIVE)
    spelled_out = ort.InferenceSession(decoder(tmp_path / "spelled_out", onnxruntime_cuda.SPELLED_OUT))
    sizes = {"batch": 1, "context": 64, "rows": 1}
    random = np.random.default_rng(0)

    def feed(sequence: int) -> dict[str, NDArray[Any]]:
        fed: dict[str, NDArray[Any]] = {}
        for wanted in spelled_out.get_inputs():
            shape = [(sizes | {"sequence": sequence}).get(size, size) for size in wanted.shape]
            half = wanted.type == "tensor(float16)"  # the caches
            integer = wanted.type == "tensor(int64)"  # past, and the last token's row
            fed[wanted.name] = (
                np.zeros(shape, np.float16 if half else np.int64)
                if half or integer
                else random.standard_normal(shape, np.float32)
            )
        return fed | {"logit_rows": np.array([sequence - 1])}

    feeds = [feed(1), feed(40)]
    outcome = in_session(built, native, feeds, NumpyKernels(np.float16, 4, BLOCK))
    assert not outcome.error
    assert outcome.launches == [3 * DECODE, 3 * SPLIT]
    for fed, logits in zip(feeds, outcome.outputs, strict=True):
        assert relative_error(logits, spelled_out.run(None, fed)[0]) < 5e-3


def test_the_kernel_with_a_stand_in_for_onnx_runtime(built: Path) -> None:
    """Failing allocations and launches, sessions and threads beside each other."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(built / "double")}
    done = subprocess.run([built / "cuda_kernel_driver"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The installed library


def installed_session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@needs_library
def test_a_graph_for_the_gpu_runs_on_the_cpus_kernel_where_there_is_none() -> None:
    """ONNX Runtime casts what the CPU's kernel has in float32 only."""
    operator, x = Operator("fp16", 4, 64), tokens(2, 9)
    y = installed_session(operator.graph()).run(None, {"x": x})[0]
    assert relative_error(y, operator.expected(x)) < 0.03, "activations of 8 bits"


@needs_library
def test_the_library_loads_without_onnx_runtime_and_without_a_driver() -> None:
    program = f"import ctypes; ctypes.CDLL({str(library_path())!r}).RegisterCustomOps"
    subprocess.run([sys.executable, "-c", program], check=True)


@needs_library
def test_an_install_knows_for_which_gpus_it_has_kernels() -> None:
    """Whether or not it has any: none are compiled for a GPU of that generation."""
    assert not gpu_kernels.has_gpu_kernels((5, 0))
    assert gpu_kernels.has_gpu_kernels() or not gpu_kernels.has_gpu_kernels((8, 0))


def test_kernels_are_found_for_later_versions_of_their_generation(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test build has some for 8.0 and 8.7."""
    monkeypatch.setattr(gpu_kernels, "_library", lambda: ctypes.CDLL(str(built / "libcuda_kernel_on_cpu.so")))
    found = {
        version: gpu_kernels.has_gpu_kernels(version) for version in ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0))
    }
    assert found == {(7, 5): False, (8, 0): True, (8, 6): True, (8, 9): True, (9, 0): False, (12, 0): False}
    assert gpu_kernels.has_gpu_kernels()


def test_without_a_library_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "_library", lambda: None)
    assert not gpu_kernels.has_gpu_kernels() and not gpu_kernels.has_gpu_kernels((8, 9))
