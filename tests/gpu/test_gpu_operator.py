"""DualPathMoE by ONNX Runtime's CUDA provider: sessions of one layer against the reference in float64, captured and not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from echovlm_edge.plugins.dual_path_moe.cuda.planner import Shape
from echovlm_edge.plugins.dual_path_moe.gpu_kernels import has_gpu_kernels
from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from echovlm_edge.runtime.backends.gpu.onnxruntime_engine import CUDA
from tests.gpu.test_gpu_kernels import TOLERANCE, Operator, inputs, relative_error

WIDTHS = (384, 128, 128, 128, 128, 128)
TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
TOKENS = (1, 2, 16, 17, 130, 1)

NewSession = Callable[..., ort.InferenceSession]


def graph(operator: Operator) -> bytes:
    """The operator in its own type, x and y float32 [tokens, hidden]."""
    shape, stored = operator.shape, operator.stored
    nodes = [
        helper.make_node("Cast", ["x"], ["half_x"], to=TYPES[operator.activation]),
        helper.make_node(
            "DualPathMoE",
            ["half_x", *stored_in_order(operator)],
            ["half_y"],
            domain="echovlm",
            group_widths=list(shape.group_widths),
            top_k=shape.top_k,
            norm_topk_prob=0,
            bits=shape.bits,
            block_size=shape.block_size,
        ),
        helper.make_node("Cast", ["half_y"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", shape.hidden]) for name in "xy")
    weights = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
    made = helper.make_graph(nodes, "layer", [x], [y], weights)
    return helper.make_model(made, opset_imports=opsets, ir_version=11).SerializeToString()


def stored_in_order(operator: Operator) -> list[str]:
    """The names of the weights as the node takes them: scales last."""
    return sorted(operator.stored, key=lambda name: name.endswith("_scale"))


@pytest.fixture(scope="module")
def new_session(gpu: CudaDevice) -> NewSession:
    """Make a session whose nodes all run on the GPU, or skip."""
    if CUDA not in ort.get_available_providers():
        pytest.skip("the installed ONNX Runtime has no CUDA provider (extra serve-gpu)")
    if not has_gpu_kernels(divmod(gpu.compute_capability, 10)):
        pytest.skip("the installed operator library has no kernels for this GPU (make kernels)")
    ort.preload_dlls()

    def new(operator: Operator, **options: str) -> ort.InferenceSession:
        settings = ort.SessionOptions()
        settings.register_custom_ops_library(str(library_path()))
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        session = ort.InferenceSession(graph(operator), settings, providers=[(CUDA, options)])
        assert session.get_providers()[0] == CUDA
        return session

    return new


def close(operator: Operator, x: NDArray[Any], y: NDArray[Any]) -> bool:
    """Compare with the reference, on x as the operator gets it."""
    return relative_error(y.astype(np.float64), operator.expected(x)) < TOLERANCE[operator.activation]


@pytest.mark.parametrize("activation", [0, 1], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("bits", "block"), [(0, 0), (4, 64), (4, 128)], ids=["float", "int4-64", "int4-128"])
def test_a_layer(new_session: NewSession, activation: int, bits: int, block: int) -> None:
    operator = Operator.random(Shape(256, WIDTHS, 2, bits, block), activation)
    session = new_session(operator)
    for tokens in TOKENS:
        x = inputs(tokens, operator.shape, activation)
        y, again = (session.run(None, {"x": x.astype(np.float32)})[0] for _ in range(2))
        assert close(operator, x, y), tokens
        np.testing.assert_array_equal(y, again, "not the same on every run")


@pytest.mark.parametrize("tokens", [1, 130])
def test_a_captured_layer(new_session: NewSession, tokens: int) -> None:
    """ONNX Runtime captures a run as a CUDA graph and launches that again: on what then lies in its input."""
    operator = Operator.random(Shape(256, WIDTHS, 2, 4, 128), 0)
    session = new_session(operator, enable_cuda_graph="1")
    binding, xs = session.io_binding(), [inputs(tokens, operator.shape, 0, seed) for seed in range(4)]
    x, y = (ort.OrtValue.ortvalue_from_numpy(xs[0].astype(np.float32), "cuda", 0) for _ in range(2))
    binding.bind_ortvalue_input("x", x)
    binding.bind_ortvalue_output("y", y)
    for given in xs:
        x.update_inplace(given.astype(np.float32))
        y.update_inplace(np.full(given.shape, np.nan, np.float32))
        session.run_with_iobinding(binding)
        assert close(operator, given, y.numpy())


def test_sessions_run_beside_each_other(new_session: NewSession) -> None:
    """Two sessions, each in two threads, with different numbers of tokens: the same bits as alone."""
    operators = [Operator.random(Shape(256, WIDTHS, 2, bits, block), 0) for bits, block in ((4, 128), (0, 0))]
    sessions = [new_session(operator) for operator in operators]
    cases = [(session, inputs(tokens, operators[0].shape, 0)) for session in sessions for tokens in (3, 40)]

    def run(session: ort.InferenceSession, x: NDArray[Any]) -> NDArray[Any]:
        whole: NDArray[Any] = session.run(None, {"x": x.astype(np.float32)})[0]
        return whole

    alone = [run(*case) for case in cases]

    def many(case: tuple[ort.InferenceSession, NDArray[Any]], expected: NDArray[Any]) -> bool:
        return all(np.array_equal(run(*case), expected) for _ in range(50))

    with ThreadPoolExecutor(len(cases)) as pool:
        assert all(pool.map(many, cases, alone))
