"""The plugin on the GPU: engines of one DualPathMoE layer against the reference in float64, recorded into a graph and not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from echovlm_edge.export.engines.tensorrt import Profile, _build
from echovlm_edge.export.engines.tensorrt_module import open_tensorrt
from echovlm_edge.export.engines.timing_cache import TimingCache
from echovlm_edge.plugins.dual_path_moe.cuda.planner import Shape
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice, CudaStream
from echovlm_edge.runtime.backends.gpu.device import Arena, Context
from echovlm_edge.runtime.backends.gpu.tensorrt_engine import UNSUPPORTED, TensorRTEngine
from echovlm_edge.runtime.backends.gpu.tensorrt_log import TensorRTErrors
from echovlm_edge.runtime.bundle.manifest import Part, TensorSpec
from tests.gpu.cubins import plugin_to_test
from tests.gpu.test_gpu_kernels import TOLERANCE, Operator, inputs, relative_error

INPUTS = ("router", "shared_gate", "coefficient", "coefficient_bias", "gate", "up", "down")
SCALES = ("gate_scale", "up_scale", "down_scale")
WIDTHS = (384, 128, 128, 128, 128, 128)
MOST_TOKENS = 130


def layer(folder: Path, operator: Operator, gpu: CudaDevice, stream: CudaStream) -> Context:
    """An engine of the operator alone, x and y float16 [tokens, hidden], as the runtime loads it."""
    module = next((name for name in ("tensorrt_rtx", "tensorrt") if importlib.util.find_spec(name)), None)
    if module is None or plugin_to_test() is None:
        pytest.skip("neither tensorrt_rtx nor tensorrt is installed, or installed without the plugin library")
    shape = operator.shape
    names = [name for name in (*INPUTS, *SCALES) if name in operator.stored]
    node = helper.make_node(
        "DualPathMoE",
        ["x", *names],
        ["y"],
        domain="echovlm",
        plugin_namespace="echovlm",
        plugin_version="1",
        group_widths=list(shape.group_widths),
        top_k=shape.top_k,
        norm_topk_prob=0,
        bits=shape.bits,
        block_size=shape.block_size,
    )
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["tokens", shape.hidden]) for name in "xy")
    weights = [numpy_helper.from_array(operator.stored[name], name) for name in names]
    graph = helper.make_graph([node], "layer", [x], [y], weights)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=11), folder / "layer.onnx")
    trt = open_tensorrt(module, plugin_to_test())
    profiles = (Profile("decode", {"tokens": (1, 1, 16)}), Profile("prefill", {"tokens": (1, 64, MOST_TOKENS)}))
    _build(trt, folder / "layer.onnx", folder / "layer.engine", graph, profiles, TimingCache(), lambda steps: None)
    gpu.enter()
    runtime = trt.api.Runtime(trt.logger)
    engine = runtime.deserialize_cuda_engine((folder / "layer.engine").read_bytes())
    if engine is None and any(UNSUPPORTED in error for error in trt.errors.messages):
        pytest.skip(f"{module} does not support compute capability {gpu.compute_capability / 10}")
    assert engine is not None, trt.errors.messages
    x_spec, y_spec = (TensorSpec(name, "float16", ("tokens", shape.hidden)) for name in "xy")
    part = Part("layer", "", (), (x_spec,), (y_spec,))
    return TensorRTEngine(trt.api, engine, part, gpu, runtime, TensorRTErrors()).new_context(stream, recorded=True)


@pytest.mark.parametrize(("bits", "block"), [(0, 0), (4, 64), (4, 128)], ids=["fp16", "int4-64", "int4-128"])
def test_a_layer(gpu: CudaDevice, tmp_path: Path, bits: int, block: int) -> None:
    operator = Operator.random(Shape(256, WIDTHS, 2, bits, block), 0)
    gpu.enter()
    stream = gpu.new_stream()
    context, arena = layer(tmp_path, operator, gpu, stream), Arena(gpu, stream)
    for tokens in (1, 2, 16, 17, MOST_TOKENS):
        x = inputs(tokens, operator.shape, 0)
        regions = arena.cut({"x": ("float16", x.shape), "y": ("float16", x.shape)})

        def there_and_back(regions: dict = regions) -> None:
            arena.upload()  # y as well, poisoned
            context.queue({"x": regions["x"].binding}, {"y": regions["y"].address})
            arena.download(regions["y"])

        for recorded in (False, True):
            regions["x"].host[...] = x
            regions["y"].host.view(np.uint16)[...] = 0xFFFF  # NaN
            if recorded and context.recordable():
                stream.record(there_and_back).launch()
            else:
                there_and_back()
            stream.synchronize()
            actual = regions["y"].host.astype(np.float64)
            assert relative_error(actual, operator.expected(x)) < TOLERANCE[0], (tokens, recorded)
