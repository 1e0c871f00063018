"""The Triton kernels on Triton's CPU interpreter, launched by the plan, against the numpy reference."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from echovlm_edge.plugins.dual_path_moe.cuda.planner import Shape
from echovlm_edge.plugins.dual_path_moe.reference import (
    DualPathMoEAttributes,
    dequantize_blocks,
    dual_path_moe,
    quantize_blocks,
)

# Looked for and not imported: the process of the interpreter imports this module before it sets its environment.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="the kernels' compiler is not installed: pip install echovlm-edge[cuda-kernels]",
)

# The output's own rounding (2^-11 and 2^-8 of a value) and that of the inner activations, as parts of the output's norm.
TOLERANCE = {"fp16": 2e-3, "bf16": 1.2e-2}
WIDTHS_BY_64 = (128, 64, 64, 64, 64, 64)
WIDTHS_BY_128 = (128, 128, 128, 128, 128)


def interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: hence a process of its own
    from triton import language
    from triton.runtime.interpreter import InterpreterBuilder

    # The interpreter holds bfloat16 as its bits, and multiplies and subtracts those: give it the values.
    def widened(name: str) -> None:
        original = getattr(InterpreterBuilder, name)

        def compute(self: Any, left: Any, right: Any, *rest: Any) -> Any:
            if left.dtype.scalar != language.bfloat16:
                return original(self, left, right, *rest)
            wide = [self.cast_impl(value, language.float32) for value in (left, right)]
            result = original(self, *wide, *rest)
            return self.cast_impl(result, language.bfloat16) if name == "create_fsub" else result

        setattr(InterpreterBuilder, name, compute)

    widened("create_dot")
    widened("create_fsub")
    InterpreterBuilder.create_inline_asm = assembled


def assembled(
    _: Any, assembly: str, constraints: str, values: list[Any], types: list[Any], pure: bool, pack: int
) -> Any:
    """Four bytes a register, to one or two tensors of two registers each."""
    from triton.runtime.interpreter import TensorHandle

    from tests.support import ptx

    (packed,) = values
    words = np.ascontiguousarray(packed.data).view(np.uint8).reshape(-1, pack).view(np.uint32).reshape(-1)
    registers = ptx.run(assembly, words, constraints.count("="))
    held = packed.data.shape

    def result(index: int) -> Any:
        pair = np.stack(registers[2 * index : 2 * index + 2], axis=1).view(np.uint16).reshape(held)
        scalar = types[index].scalar
        return TensorHandle(pair.view(np.float16) if scalar.is_fp16() else pair, scalar)

    return SimpleNamespace(get_result=result)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), interpret) as pool:
        yield pool


def launched(operands: dict[str, Any], shape: Shape, tactic: dict[str, Any], norm: bool) -> NDArray[np.float32]:
    from echovlm_edge.plugins.dual_path_moe.cuda.launch import Operands, Tactic, run

    return run(Operands(**operands), shape, Tactic(**tactic), norm)


def launched_linear(*arrays: Any) -> NDArray[np.float32]:
    from echovlm_edge.plugins.dual_path_moe.cuda.launch import run_linear

    return run_linear(*arrays)


def rounded(values: NDArray[np.float32], activation: str) -> NDArray[np.float32]:
    if activation == "fp16":
        return values.astype(np.float16).astype(np.float32)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


class Case:
    """Random operands of a shape, and the reference over exactly those numbers, in float64."""

    def __init__(self, shape: Shape, activation: str, tokens: int, seed: int = 0, norm: bool = False) -> None:
        random = np.random.default_rng(seed)
        self.shape, self.activation, self.norm = shape, activation, norm

        def normal(*size: int, scale: float = 1.0) -> NDArray[np.float32]:
            return rounded((random.standard_normal(size) * scale).astype(np.float32), activation)

        hidden, inner = shape.hidden, shape.inner
        self.small = {
            "x": normal(tokens, hidden),
            "router": normal(shape.experts, hidden, scale=0.2),
            "shared_gate": normal(1, hidden, scale=0.1),
            "coefficient": normal(2, hidden, scale=0.1),
            "coefficient_bias": normal(2),
        }
        self.stored, self.scales, self.floating = {}, {}, {}
        for name, size in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            weight = normal(*size, scale=size[1] ** -0.5)
            self.stored[name] = self.floating[name] = weight
            if shape.bits:
                packed, scale = quantize_blocks(weight, shape.bits, shape.block_size)
                self.stored[name], self.scales[f"{name}_scale"] = packed, scale
                self.floating[name] = dequantize_blocks(packed, scale, shape.bits)

    def expected(self) -> NDArray[np.float64]:
        attributes = DualPathMoEAttributes(self.shape.group_widths, self.shape.top_k, self.norm)
        wide: list[Any] = [value.astype(np.float64) for value in (*self.small.values(), *self.floating.values())]
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(dual_path_moe(*wide, attributes))

    def measured(self, interpreter: ProcessPoolExecutor, tile_tokens: int, **tactic: int) -> NDArray[np.float32]:
        operands = self.small | self.stored | self.scales
        chosen = {"activation": self.activation, "tile_tokens": tile_tokens, "multiprocessors": 1, **tactic}
        return interpreter.submit(launched, operands, self.shape, chosen, self.norm).result(timeout=300)

    def agrees(self, measured: NDArray[np.float32]) -> None:
        expected = self.expected()
        errors = np.linalg.norm(measured - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert errors.max() < TOLERANCE[self.activation], errors


def shape_of(bits: int, block_size: int, top_k: int = 2) -> Shape:
    widths = WIDTHS_BY_128 if block_size == 128 else WIDTHS_BY_64
    return Shape(128, widths, top_k, bits, block_size)


@pytest.mark.parametrize("activation", ["fp16", "bf16"])
@pytest.mark.parametrize(("bits", "block_size"), [(0, 0), (4, 64), (4, 128)])
@pytest.mark.parametrize(("tile_tokens", "tokens"), [(16, 1), (16, 15), (64, 65), (128, 129)])
def test_every_kernel_computes_the_operator(
    interpreter: ProcessPoolExecutor, activation: str, bits: int, block_size: int, tile_tokens: int, tokens: int
) -> None:
    case = Case(shape_of(bits, block_size), activation, tokens, seed=tokens)
    case.agrees(case.measured(interpreter, tile_tokens))


@settings(max_examples=12, deadline=None)
@given(
    activation=st.sampled_from(["fp16", "bf16"]), weights=st.sampled_from([(0, 0), (4, 64), (4, 128)]),
    tokens=st.integers(1, 80), tile_tokens=st.sampled_from([32, 64]), multiprocessors=st.integers(1, 8),
)  # fmt: skip
def test_any_number_of_tokens_in_any_number_of_parts(
    interpreter: ProcessPoolExecutor,
    activation: str,
    weights: tuple[int, int],
    tokens: int,
    tile_tokens: int,
    multiprocessors: int,
) -> None:
    case = Case(shape_of(*weights), activation, tokens, seed=tokens)
    case.agrees(case.measured(interpreter, tile_tokens, multiprocessors=multiprocessors))


@pytest.mark.parametrize("tile_tokens", [32, 64])
def test_a_tokens_bits_do_not_depend_on_the_others(interpreter: ProcessPoolExecutor, tile_tokens: int) -> None:
    """The columns are divided into as many parts for 17 tokens as for 80, and the parts are added up in one order."""
    case = Case(shape_of(4, 64), "fp16", 80)
    together = case.measured(interpreter, tile_tokens)
    case.small["x"] = case.small["x"][:17]
    np.testing.assert_array_equal(case.measured(interpreter, tile_tokens), together[:17])


@pytest.mark.parametrize(("top_k", "norm"), [(1, False), (3, True), (4, False)])
@pytest.mark.parametrize("tile_tokens", [16, 64])
def test_any_top_k(interpreter: ProcessPoolExecutor, top_k: int, norm: bool, tile_tokens: int) -> None:
    case = Case(shape_of(0, 0, top_k), "fp16", 9, seed=top_k, norm=norm)
    case.agrees(case.measured(interpreter, tile_tokens))


@pytest.mark.parametrize("splits_for", [1, 3, 200])
def test_the_cut_of_down_changes_no_more_than_rounding(interpreter: ProcessPoolExecutor, splits_for: int) -> None:
    case = Case(shape_of(4, 64), "fp16", 3)
    case.agrees(case.measured(interpreter, 16, multiprocessors=splits_for))


@pytest.mark.parametrize("tile_tokens", [16, 64])
def test_all_tokens_to_one_expert_and_none_to_another(interpreter: ProcessPoolExecutor, tile_tokens: int) -> None:
    case = Case(shape_of(4, 64, 1), "fp16", 13)
    case.small["router"][:] = 0
    case.small["router"][2] = 0.05 * np.sign(case.small["x"].sum(0))  # a tie of the others, which expert 2 breaks
    case.small["x"][:] = rounded(case.small["x"] + np.sign(case.small["x"].sum(0)), "fp16")
    case.agrees(case.measured(interpreter, tile_tokens))


@pytest.mark.parametrize("tile_tokens", [16, 64])
def test_many_experts_and_ties(interpreter: ProcessPoolExecutor, tile_tokens: int) -> None:
    case = Case(Shape(64, (64, 64, *[64] * 19), 3, 0, 0), "fp16", 6)
    case.small["router"][:] = 0  # all alike: the lower indexes win
    case.agrees(case.measured(interpreter, tile_tokens))


@pytest.mark.parametrize(("tile_tokens", "bad"), [(16, np.inf), (64, np.nan)])
def test_nan_and_infinity_stay_with_their_token(interpreter: ProcessPoolExecutor, tile_tokens: int, bad: float) -> None:
    case = Case(shape_of(4, 64), "fp16", 5)
    clean = case.measured(interpreter, tile_tokens)
    case.small["x"][3, 17] = bad
    measured = case.measured(interpreter, tile_tokens)
    assert not np.isfinite(measured[3]).all()
    np.testing.assert_array_equal(np.delete(measured, 3, 0), np.delete(clean, 3, 0))


def test_the_same_numbers_give_the_same_bits(interpreter: ProcessPoolExecutor) -> None:
    case = Case(shape_of(4, 64), "fp16", 18)
    np.testing.assert_array_equal(case.measured(interpreter, 64), case.measured(interpreter, 64))


@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize(("tokens", "outputs"), [(1, 64), (16, 33), (17, 200)])
def test_one_product_with_bytes(interpreter: ProcessPoolExecutor, block_size: int, tokens: int, outputs: int) -> None:
    """Of every byte, in rows and tokens that fill no tile."""
    random = np.random.default_rng(tokens)
    x = random.standard_normal((tokens, 256), np.float32)
    weight = random.integers(-127, 128, (outputs, 256), np.int8)
    weight.reshape(-1)[:255] = np.arange(-127, 128)
    scale = random.uniform(0.5, 2, (outputs, 256 // block_size)).astype(np.float32)
    y = interpreter.submit(launched_linear, x, weight, scale).result(timeout=300)
    expected = x.astype(np.float16).astype(np.float64) @ dequantize_blocks(weight, scale, 8).astype(np.float64).T
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() < 1e-5 * np.abs(expected).max()  # sums in float32


def test_a_products_rows_do_not_depend_on_their_number(interpreter: ProcessPoolExecutor) -> None:
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((20, 128), np.float32), random.integers(-127, 128, (64, 128), np.int8)
    scale = random.uniform(0.5, 2, (64, 2)).astype(np.float32)
    x[3, 5] = np.nan
    y = interpreter.submit(launched_linear, x, weight, scale).result(timeout=300)
    alone = interpreter.submit(launched_linear, x[4:5], weight, scale).result(timeout=300)
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, 0)).all()
    np.testing.assert_array_equal(y[4:5], alone)
