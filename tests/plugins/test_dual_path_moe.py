"""DualPathMoE and BlockQuantLinear: every kernel of this computer, and ARM's under qemu, against the numpy reference.

Tolerance: the reference rounds activations to int8 as the kernels do, which leaves the order of float sums, and the
few inner values that another order rounds to the other side (one step of 127).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import StoredWeight
from echovlm_edge.plugins.dual_path_moe.reference import (
    DualPathMoEAttributes,
    Floats,
    dequantize_blocks,
    dual_path_moe,
    quantize_activations,
    quantize_blocks,
)
from tests.support.native_kernels import kernels, library

ROOT = Path(__file__).parents[2]
TOLERANCE = {0: 2e-6, 4: 2e-3, 8: 2e-3}
EDGE_COST = 0.02  # of a token, where rounding an activation the other way is as right
INT8_COST = 0.03  # of the output's norm, for normal activations: measured 1.0 to 1.9 %

pytestmark = pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")


@dataclass(frozen=True)
class Case:
    """One operator with random weights."""

    attributes: DualPathMoEAttributes
    hidden: int
    seed: int = 0
    half_scales: bool = False
    float_type: type = np.float32

    def small(self) -> tuple[Floats, Floats, Floats, Floats]:
        generator = np.random.default_rng(self.seed)
        experts = self.attributes.experts
        rows = (_normal(generator, count, self.hidden) for count in (experts, 1, 2))
        router, shared_gate, coefficient = rows
        return router, shared_gate, coefficient, _normal(generator, 1, 2)[0]

    def stored(self) -> list[StoredWeight]:
        generator = np.random.default_rng(self.seed + 1)
        total = sum(self.attributes.group_widths)
        shapes = ((total, self.hidden), (total, self.hidden), (self.hidden, total))
        weights = [_normal(generator, *shape) for shape in shapes]
        if self.attributes.bits == 0:
            return [(weight.astype(self.float_type), None) for weight in weights]
        packed = [quantize_blocks(weight, self.attributes.bits, self.attributes.block_size) for weight in weights]
        scale_type = np.float16 if self.half_scales else np.float32
        return [(values, scales.astype(scale_type)) for values, scales in packed]

    def tokens(self, count: int) -> Floats:
        return np.random.default_rng(self.seed + 2).standard_normal((count, self.hidden), dtype=np.float32)

    def reference(self, x: Floats, int8_activations: bool = True) -> Floats:
        weights = [_value(weight, self.attributes.bits) for weight in self.stored()]
        small = [array.astype(np.float64) for array in self.small()]
        int8 = int8_activations and self.attributes.bits != 0
        with np.errstate(all="ignore"):
            return dual_path_moe(x.astype(np.float64), *small, *weights, self.attributes, int8)

    def on_an_edge(self, x: Floats) -> NDArray[np.bool_]:
        """Tokens [n] of which float sums in another order could round an inner value the other way."""
        if self.attributes.bits == 0:
            return np.zeros(len(x), bool)
        gate, up, _ = (_value(weight, self.attributes.bits) for weight in self.stored())
        entering = quantize_activations(x.astype(np.float64), self.attributes.block_size)
        gated = entering @ gate.T
        inner = gated / (1 + np.exp(-gated)) * (entering @ up.T)
        return _on_an_edge(x, self.attributes.block_size) | _on_an_edge(inner, self.attributes.block_size, 2e-4)

    def native(self, x: Floats, kernel: str, threads: int = 1) -> Floats:
        return self.operator(kernel, threads)(x)

    def operator(self, kernel: str, threads: int = 1) -> Callable[[Floats], Floats]:
        """Its weights are made once."""
        small, stored = self.small(), self.stored()

        def run(x: Floats) -> Floats:
            with library().using(kernel):
                return library().dual_path_moe(np.ascontiguousarray(x), *small, stored, self.attributes, threads)

        return run


def _normal(generator: np.random.Generator, rows: int, columns: int) -> Floats:
    return (generator.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)


def _value(weight: StoredWeight, bits: int) -> Floats:
    values, scales = weight
    if scales is None:
        return values.astype(np.float64)
    return dequantize_blocks(values, scales, bits).astype(np.float64)


def _on_an_edge(x: Floats, block: int, error: float = 2e-5) -> NDArray[np.bool_]:
    """Tokens [n] with an activation that an error can round to either of two integers: by default that of one product of 127."""
    blocks = x.astype(np.float64).reshape(len(x), -1, block)
    steps = np.abs(blocks) / np.abs(blocks).max(-1, keepdims=True) * 127
    return (np.abs(steps % 1 - 0.5) < error).any((1, 2))


def _error(actual: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


CASE = Case(DualPathMoEAttributes((256, 128, 64, 64, 64), top_k=2, bits=4, block_size=64), hidden=192)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    bits = draw(st.sampled_from((0, 4, 8)))
    block = draw(st.sampled_from((16, 32, 64, 128))) if bits else 0
    unit = block or 1
    experts = draw(st.integers(1, 5))
    widths = tuple(draw(st.lists(st.integers(1, 5), min_size=experts + 2, max_size=experts + 2)))
    attributes = DualPathMoEAttributes(
        tuple(width * unit for width in widths), draw(st.integers(1, experts)), draw(st.booleans()), bits, block
    )
    hidden = draw(st.integers(1, 6)) * unit + (0 if bits else draw(st.integers(0, 40)))
    half = draw(st.booleans())
    return Case(attributes, hidden, draw(st.integers(0, 99)), half, np.float16 if half else np.float32)


@pytest.mark.parametrize("kernel", kernels())
@settings(max_examples=60, deadline=None)
@given(case=cases(), count=st.sampled_from((1, 2, 3, 4, 5, 7, 8, 9, 13, 31, 33)), threads=st.integers(1, 3))
def test_matches_the_reference(kernel: str, case: Case, count: int, threads: int) -> None:
    x = case.tokens(count)
    actual, expected = case.native(x, kernel, threads), case.reference(x)
    clear = ~case.on_an_edge(x)
    if clear.any():
        assert _error(actual[clear], expected[clear]) < TOLERANCE[case.attributes.bits]
    assert max(_error(*token) for token in zip(actual, expected, strict=True)) < EDGE_COST


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("count", [300, 1100])
def test_many_tokens_cross_chunks_and_slabs(kernel: str, count: int) -> None:
    x = CASE.tokens(count)
    assert _error(CASE.native(x, kernel, 2), CASE.reference(x)) < TOLERANCE[4]


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("bits", [4, 8])
def test_a_long_row_crosses_stretches(kernel: str, bits: int) -> None:
    case = Case(DualPathMoEAttributes((40960, 128, 128), 1, bits=bits, block_size=128), hidden=128)
    for count in (1, 4):
        x = case.tokens(count)
        assert _error(case.native(x, kernel), case.reference(x)) < TOLERANCE[bits]


def test_int8_activations_cost_what_the_specification_says() -> None:
    x = CASE.tokens(64)
    exact = CASE.reference(x, int8_activations=False)
    assert 0.001 < _error(CASE.native(x, library().kernel), exact) < INT8_COST


@pytest.mark.parametrize("kernel", kernels())
def test_the_number_of_threads_changes_nothing(kernel: str) -> None:
    for count in (1, 6, 70, 600):
        x = CASE.tokens(count)
        alone = CASE.native(x, kernel, 1)
        for threads in (2, 3, 5):
            np.testing.assert_array_equal(CASE.native(x, kernel, threads), alone)


@pytest.mark.parametrize("kernel", kernels())
@settings(max_examples=30, deadline=None)
@given(case=cases(), count=st.integers(2, 40), data=st.data())
def test_a_token_has_the_bits_that_it_has_alone(kernel: str, case: Case, count: int, data: st.DataObject) -> None:
    operator, x = case.operator(kernel), case.tokens(count)
    together = operator(x)
    chosen = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12)))
    assert operator(x[chosen]).tobytes() == together[chosen].tobytes()
    for token in chosen[:4]:
        assert operator(x[token : token + 1]).tobytes() == together[token].tobytes()


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize(("bits", "block"), [(0, 0), (4, 32), (4, 128), (8, 16), (8, 128)])
def test_long_rows_have_the_bits_that_they_have_alone(kernel: str, bits: int, block: int) -> None:
    case = Case(DualPathMoEAttributes((2176, 128, 128, 128), 1, bits=bits, block_size=block), hidden=2176)
    operator, x = case.operator(kernel), case.tokens(40)
    together = operator(x)
    for count in (2, 3, 4, 7, 8, 9, 15, 16, 17):
        np.testing.assert_array_equal(operator(x[:count]), together[:count])
    for token in range(16):
        np.testing.assert_array_equal(operator(x[token : token + 1])[0], together[token])


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize(("rows", "columns"), [(77, 5), (64, 2304), (77, 2304)])
def test_a_linear_token_has_the_bits_that_it_has_alone(
    kernel: str, bits: int, block: int, rows: int, columns: int
) -> None:
    """Rows and columns that are whole vectors, and that are not: 5 stands for as many blocks."""
    columns = 5 * block if columns == 5 else columns
    generator = np.random.default_rng(bits)
    weight = quantize_blocks(_normal(generator, rows, columns), bits, block)
    bias, x = (
        generator.standard_normal(rows, dtype=np.float32),
        generator.standard_normal((20, columns), dtype=np.float32),
    )
    with library().using(kernel):
        together = library().block_quant_linear(x, weight, bits, block, bias, threads=2)
        for count in range(1, 20):
            some = library().block_quant_linear(x[-count:].copy(), weight, bits, block, bias)
            assert some.tobytes() == together[-count:].tobytes()


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [3, 40])
@pytest.mark.parametrize("bits", [0, 4, 8])
def test_a_token_that_is_not_finite_spoils_only_itself(kernel: str, value: float, count: int, bits: int) -> None:
    block = 64 if bits else 0
    case = Case(DualPathMoEAttributes(CASE.attributes.group_widths, 2, bits=bits, block_size=block), 192)
    x = case.tokens(count)
    clean = case.native(x, kernel)
    x[1, 70] = value
    y = case.native(x, kernel)
    others = np.arange(count) != 1
    assert not np.isfinite(y[1]).any() and not np.isfinite(case.reference(x)[1]).any()
    np.testing.assert_array_equal(y[others], clean[others])


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("top_k", [1, 3])
def test_all_tokens_to_the_same_experts(kernel: str, top_k: int) -> None:
    case = Case(DualPathMoEAttributes(CASE.attributes.group_widths, top_k, bits=4, block_size=64), 192)
    x = np.repeat(case.tokens(1), 37, axis=0)
    y = case.native(x, kernel, 2)
    assert _error(y, case.reference(x)) < TOLERANCE[4]
    np.testing.assert_array_equal(y, np.repeat(y[:1], 37, axis=0))


@pytest.mark.parametrize("kernel", kernels())
def test_the_lower_expert_wins_a_tie(kernel: str) -> None:
    case = Case(DualPathMoEAttributes((64, 64, 64, 64, 64), 1, bits=4, block_size=64), 64)
    router, *rest = case.small()
    router[:] = router[0]
    x = case.tokens(5)
    weights = [_value(weight, 4) for weight in case.stored()]
    small = [array.astype(np.float64) for array in (router, *rest)]
    expected = dual_path_moe(x.astype(np.float64), *small, *weights, case.attributes, True)
    with library().using(kernel):
        y = library().dual_path_moe(x, router, *rest, case.stored(), case.attributes)
    assert _error(y, expected) < TOLERANCE[4]


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("count", [1, 3, 4, 6, 8, 11, 50])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("columns", [None, 2304])
def test_block_quant_linear(kernel: str, bits: int, count: int, block: int, columns: int | None) -> None:
    """Columns that end within a vector, mostly, and several stretches of whole vectors."""
    generator = np.random.default_rng(bits + count)
    columns = columns or 5 * block + (128 if block == 16 else 0)
    weight = quantize_blocks(_normal(generator, 77, columns), bits, block)
    bias = generator.standard_normal(77, dtype=np.float32)
    x = generator.standard_normal((count, columns), dtype=np.float32)
    while not (clear := ~_on_an_edge(x, block)).any():
        x = generator.standard_normal((count, columns), dtype=np.float32)
    with library().using(kernel):
        y = library().block_quant_linear(x, weight, bits, block, bias, threads=2)
    expected = quantize_activations(x, block).astype(np.float64) @ dequantize_blocks(*weight, bits).T + bias
    assert _error(y[clear], expected[clear]) < 1e-5
    assert _error(y, expected) < EDGE_COST


def test_the_bytes_of_4_bits_are_those_of_matmulnbits() -> None:
    weight = np.arange(-8, 8, dtype=np.float32).reshape(1, 16)
    packed, scale = quantize_blocks(weight, 4, 16)
    assert scale[0, 0] == 1
    assert [byte & 15 for byte in packed.view(np.uint8)[0]] == list(range(0, 16, 2))
    assert [byte >> 4 for byte in packed.view(np.uint8)[0]] == list(range(1, 16, 2))


def _session(case: Case, rank: int, **changes: object) -> ort.InferenceSession:
    return _open(_model(case, rank, **changes))


def _model(case: Case, rank: int, **changes: object) -> bytes:
    names = ("router", "shared_gate", "coefficient", "coefficient_bias", "gate", "up", "down")
    arrays = dict(zip(names, (*case.small(), *(values for values, _ in case.stored())), strict=True))
    scales = {f"{name}_scale": scale for name, (_, scale) in zip(names[4:], case.stored(), strict=True)}
    arrays |= {name: scale for name, scale in scales.items() if scale is not None}
    attributes = case.attributes
    given: dict[str, object] = {
        "group_widths": list(attributes.group_widths),
        "top_k": attributes.top_k,
        "norm_topk_prob": int(attributes.norm_topk_prob),
        "bits": attributes.bits,
        "block_size": attributes.block_size,
    }
    node = helper.make_node("DualPathMoE", ["x", *arrays], ["y"], domain="echovlm", **(given | changes))
    shape = [f"axis{axis}" for axis in range(rank - 1)] + [case.hidden]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "one", tensors[:1], tensors[1:], initializers)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _open(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("shape", [(1,), (2, 7), (0, 3), (90,)])
def test_in_onnx_runtime(bits: int, shape: tuple[int, ...]) -> None:
    block = 64 if bits else 0
    case = Case(DualPathMoEAttributes(CASE.attributes.group_widths, 2, True, bits, block), 192, half_scales=True)
    x = case.tokens(int(np.prod(shape))).reshape(*shape, 192)
    y = _session(case, len(shape) + 1).run(None, {"x": x})[0]
    assert y.shape == x.shape
    np.testing.assert_array_equal(y.reshape(-1, 192), case.native(x.reshape(-1, 192), library().kernel))


def test_block_quant_linear_in_onnx_runtime() -> None:
    generator = np.random.default_rng(0)
    weight, scale = quantize_blocks(_normal(generator, 40, 128), 4, 32)
    arrays = {"weight": weight, "scale": scale, "bias": _normal(generator, 1, 40)[0]}
    node = helper.make_node("BlockQuantLinear", ["x", *arrays], ["y"], domain="echovlm", bits=4, block_size=32)
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", width])
        for name, width in (("x", 128), ("y", 40))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "one", tensors[:1], tensors[1:], initializers)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = generator.standard_normal((2, 3, 128), dtype=np.float32)
    y = session.run(None, {"x": x})[0]
    expected = library().block_quant_linear(x.reshape(6, 128), (weight, scale), 4, 32, arrays["bias"])
    np.testing.assert_array_equal(y, expected.reshape(2, 3, 40))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"block_size": 128}, "group width 64 is not a multiple of block_size 128"),
        ({"block_size": 48}, "block_size is 48, but a block has 16, 32, 64 or 128 values"),
        ({"bits": 3}, "bits is 3, but weights have 0 (floating), 4 or 8"),
        ({"top_k": 4}, "top_k 4 is not between 1 and the 3 experts"),
        ({"group_widths": [64, 64]}, "group_widths has 2 entries"),
        ({"group_widths": [64, -64, 64]}, "group_widths holds a width that is not positive"),
    ],
)
def test_wrong_attributes_are_refused_by_name(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(Exception, match=re.escape(sentence)):
        _session(CASE, 2, **changes)


def test_a_weight_of_another_shape_is_refused_by_name() -> None:
    session = _session(CASE, 2, group_widths=[256, 128, 64, 64, 128])
    with pytest.raises(Exception, match=r"gate must have the shape \[640, 96\]"):
        session.run(None, {"x": CASE.tokens(2)})


def test_a_router_of_another_type_is_refused_by_name() -> None:
    """ONNX Runtime leaves it to the operator, which has kernels for two types of x."""
    model = onnx.load_model_from_string(_model(CASE, 2))
    router = next(value for value in model.graph.initializer if value.name == "router")
    router.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(router).astype(np.float16), "router"))
    with pytest.raises(Exception, match=r"DualPathMoE: router must be float32 \[3, 192\]"):
        _open(model.SerializeToString()).run(None, {"x": CASE.tokens(2)})


def test_a_missing_attribute_is_named() -> None:
    with pytest.raises(Exception, match="attribute top_k is missing"):
        _session(CASE, 2, top_k=None)


@pytest.mark.parametrize("march", ["neon_dotprod", "neon_i8mm", "portable"])
def test_arm_kernels_under_qemu(march: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if not (compiler and emulator and shutil.which("cmake")):
        pytest.skip("needs cmake, aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)")
    driver = _arm_driver(compiler)
    command = [emulator, "-cpu", "max", "-L", "/usr/aarch64-linux-gnu", str(driver), march]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{march}: " in done.stdout


@cache
def _arm_driver(compiler: str) -> Path:
    build = ROOT / "build" / "native-aarch64"
    configure = [
        *("cmake", "-S", str(ROOT / "plugins" / "dual_path_moe" / "cpu"), "-B", str(build)),
        *("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}"),
        "-DECHOVLM_NATIVE_TESTS=ON",
    ]
    for command in (configure, ["cmake", "--build", str(build), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "kernel_driver"
