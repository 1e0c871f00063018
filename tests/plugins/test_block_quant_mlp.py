"""BlockQuantMLP in both forms: every kernel of this computer against the numpy reference, batch invariance, NaN, and refusals."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import StoredLinear
from echovlm_edge.plugins.dual_path_moe.reference import (
    Floats,
    block_quant_mlp,
    dequantize_blocks,
    quantize_blocks,
)
from tests.support.native_kernels import kernels, library

# Float sums in another order round a few inner values to the other side: one step of 127 each.
TOLERANCE = 2e-3
EDGE_COST = 0.02  # of a token

pytestmark = pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")


@dataclass(frozen=True)
class Case:
    """One operator with random weights."""

    width: int
    inner: int
    gated: bool = False
    bits: int = 8
    block: int = 64
    inner_block: int = 64
    half_scales: bool = True

    def layers(self) -> list[StoredLinear]:
        """Up and down; then gate, if there is one."""
        generator = np.random.default_rng(self.width + self.inner)
        into, out = (self.inner, self.width, self.block), (self.width, self.inner, self.inner_block)
        made: list[StoredLinear] = []
        for rows, columns, block in (into, out, into)[: 3 if self.gated else 2]:
            weight = (generator.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
            values, scales = quantize_blocks(weight, self.bits, block)
            bias = generator.standard_normal(rows, dtype=np.float32)
            made.append(((values, scales.astype(np.float16 if self.half_scales else np.float32)), bias))
        return made

    def tokens(self, count: int) -> Floats:
        return np.random.default_rng(7).standard_normal((count, self.width), dtype=np.float32)

    @property
    def blocks(self) -> tuple[int, int]:
        return self.block, self.inner_block

    def native(self, x: Floats, kernel: str, threads: int = 1) -> Floats:
        up, down, *gate = self.layers()
        with library().using(kernel):
            return library().block_quant_mlp(
                np.ascontiguousarray(x), up, down, self.bits, self.blocks, gate[0] if gate else None, threads
            )

    def reference(self, x: Floats) -> Floats:
        exact = []
        for (values, scales), bias in self.layers():
            assert scales is not None and bias is not None
            exact.append((dequantize_blocks(values, scales, self.bits).astype(np.float64), bias.astype(np.float64)))
        up, down, *gate = exact
        with np.errstate(all="ignore"):
            return block_quant_mlp(x.astype(np.float64), up, down, self.blocks, gate[0] if gate else None)


def _error(actual: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


FORMS = tuple(Case(192, 320, gated, inner_block=32) for gated in (False, True))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    blocks = draw(st.tuples(*[st.sampled_from((16, 32, 64, 128))] * 2))
    width, inner = (draw(st.integers(1, 5)) * block for block in blocks)
    return Case(width, inner, draw(st.booleans()), draw(st.sampled_from((4, 8))), *blocks, draw(st.booleans()))


@pytest.mark.parametrize("kernel", kernels())
@settings(max_examples=40, deadline=None)
@given(case=cases(), count=st.sampled_from((1, 2, 3, 5, 8, 9, 17, 33)), threads=st.integers(1, 3))
def test_matches_the_reference(kernel: str, case: Case, count: int, threads: int) -> None:
    x = case.tokens(count)
    actual, expected = case.native(x, kernel, threads), case.reference(x)
    errors = [_error(*token) for token in zip(actual, expected, strict=True)]
    assert max(errors) < EDGE_COST
    assert np.median(errors) < TOLERANCE or count < 8


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("case", FORMS)
def test_many_tokens_cross_chunks_and_slabs(kernel: str, case: Case) -> None:
    x = case.tokens(2100)
    y = case.native(x, kernel, 2)
    assert _error(y, case.reference(x)) < TOLERANCE
    np.testing.assert_array_equal(case.native(x[-300:], kernel), y[-300:])


@pytest.mark.parametrize("kernel", kernels())
@settings(max_examples=20, deadline=None)
@given(case=cases(), count=st.integers(2, 40), data=st.data())
def test_a_token_has_the_bits_that_it_has_alone(kernel: str, case: Case, count: int, data: st.DataObject) -> None:
    x = case.tokens(count)
    together = case.native(x, kernel)
    chosen = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=12)))
    assert case.native(x[chosen], kernel).tobytes() == together[chosen].tobytes()
    assert case.native(x[chosen[:1]], kernel).tobytes() == together[chosen[:1]].tobytes()


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("case", FORMS)
def test_the_number_of_threads_changes_nothing(kernel: str, case: Case) -> None:
    for count in (1, 6, 600):
        x = case.tokens(count)
        alone = case.native(x, kernel, 1)
        for threads in (2, 3, 5):
            np.testing.assert_array_equal(case.native(x, kernel, threads), alone)


@pytest.mark.parametrize("case", FORMS)
def test_on_most_tokens_it_is_its_layers_one_after_the_other(case: Case) -> None:
    """The same blocks are rounded in the same way; only the exponential is another, in its last bits."""
    (up, up_bias), (down, down_bias), *gate = case.layers()
    x = case.tokens(64)

    def linear(values: Floats, layer: StoredLinear, block: int = case.block) -> Floats:
        return library().block_quant_linear(values, layer[0], case.bits, block, layer[1])

    lifted = linear(x, (up, up_bias))
    scaled = linear(x, gate[0]) if gate else np.float32(1.702) * lifted
    sigmoid = (1 / (1 + np.exp(-scaled.astype(np.float64)))).astype(np.float32)
    inner = scaled * sigmoid * lifted if gate else lifted * sigmoid
    apart = linear(inner, (down, down_bias), case.inner_block)
    difference = np.abs(case.native(x, library().kernel) - apart).max(axis=1)
    assert np.median(difference) < 1e-5 * np.abs(apart).max()


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", FORMS)
@pytest.mark.parametrize("count", [3, 40])
def test_a_token_that_is_not_finite_spoils_only_itself(kernel: str, value: float, case: Case, count: int) -> None:
    x = case.tokens(count)
    clean = case.native(x, kernel)
    x[1, 70] = value
    y = case.native(x, kernel)
    others = np.arange(count) != 1
    assert not np.isfinite(y[1]).any()
    np.testing.assert_array_equal(y[others], clean[others])


def _session(case: Case, names: dict[str, str] | None = None, **changes: object) -> ort.InferenceSession:
    """Open the operator on x [a, b, width]; `names` puts one tensor in the place of another."""
    arrays: dict[str, np.ndarray] = {}
    for name, ((values, scales), bias) in zip(("up", "down", "gate"), case.layers(), strict=False):
        assert scales is not None and bias is not None
        arrays |= {name: values, f"{name}_scale": scales, f"{name}_bias": bias}
    inputs = ["x", "up", "up_scale", "down", "down_scale", "up_bias", "down_bias"]
    inputs += ["gate", "gate_scale", "gate_bias"] if case.gated else []
    attributes: dict[str, object] = {"bits": case.bits, "block_size": case.block, "inner_block_size": case.inner_block}
    node = helper.make_node(
        "BlockQuantMLP",
        [(names or {}).get(name, name) for name in inputs],
        ["y"],
        domain="echovlm",
        **(attributes | changes),
    )
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", case.width]) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph([node], "one", tensors[:1], tensors[1:], initializers)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", FORMS)
@pytest.mark.parametrize("shape", [(2, 7), (0, 3), (1, 1)])
def test_in_onnx_runtime(case: Case, shape: tuple[int, int]) -> None:
    x = case.tokens(shape[0] * shape[1]).reshape(*shape, case.width)
    y = _session(case).run(None, {"x": x})[0]
    assert y.shape == x.shape
    np.testing.assert_array_equal(y.reshape(-1, case.width), case.native(x.reshape(-1, case.width), library().kernel))


def test_a_layer_may_have_no_bias() -> None:
    case = FORMS[1]
    x = case.tokens(6)
    up, down, gate = ((weight, None) for weight, _ in case.layers())
    expected = library().block_quant_mlp(x, up, down, case.bits, case.blocks, gate)
    none = {f"{name}_bias": "" for name in ("up", "down", "gate")}
    y = _session(case, none).run(None, {"x": x.reshape(2, 3, -1)})[0]
    np.testing.assert_array_equal(y.reshape(6, -1), expected)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bits": 0}, "BlockQuantMLP: bits is 0, but BlockQuantMLP's weights have 4 or 8."),
        ({"bits": 3}, "BlockQuantMLP: bits is 3, but weights have 0 (floating), 4 or 8."),
        ({"block_size": 48}, "BlockQuantMLP: block_size is 48, but a block has 16, 32, 64 or 128 values."),
        ({"inner_block_size": 48}, "BlockQuantMLP: block_size is 48, but a block has 16, 32, 64 or 128 values."),
        ({"inner_block_size": None}, "BlockQuantMLP: attribute inner_block_size is missing."),
    ],
)
def test_wrong_attributes_are_refused_by_name(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(Exception, match=re.escape(sentence)):
        _session(FORMS[0], **changes)


@pytest.mark.parametrize(
    ("case", "names", "sentence"),
    [
        (FORMS[0], {"down": "up"}, "down must have the shape [192, 320]."),
        (FORMS[0], {"up_bias": "down_bias"}, "up_bias must be float32 [1, 320]."),
        (FORMS[0], {"down_scale": "up_scale"}, "down_scale must be float32 or float16 [192, 10]."),
        (FORMS[1], {"gate": "down"}, "gate must have the shape [320, 192]."),
        (FORMS[1], {"gate_bias": "down_bias"}, "gate_bias must be float32 [1, 320]."),
    ],
)
def test_tensors_of_another_shape_are_refused_by_name(case: Case, names: dict[str, str], sentence: str) -> None:
    session = _session(case, names)
    with pytest.raises(Exception, match=re.escape(f"BlockQuantMLP: {sentence}")):
        session.run(None, {"x": case.tokens(2).reshape(1, 2, -1)})


@pytest.mark.parametrize(("width", "inner", "which"), [(96, 128, "input width 96"), (128, 96, "inner width 96")])
def test_widths_that_end_within_a_block_are_refused(width: int, inner: int, which: str) -> None:
    case = Case(width, inner, block=32, inner_block=32)
    up, down = case.layers()
    with pytest.raises(ValueError, match=f"{which} is not a multiple of block_size 64"):
        library().block_quant_mlp(case.tokens(1), up, down, 8, (64, 64))
