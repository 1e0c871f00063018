"""The TensorRT plugin in TensorRT-RTX's own registry, parser and builder; its planner and archive against the Python versions.

What TensorRT keeps to itself (clones, stored fields, launches) is driven by tests/native/plugin_driver.cpp, here for aarch64
under qemu and by `make test-native` under sanitizers. TensorRT-RTX 1.7 offers plugins no logger, so that their sentences are on
standard error.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from echovlm_edge.export.engines.tensorrt_module import TensorRT, open_tensorrt
from echovlm_edge.plugins.dual_path_moe.cuda import planner
from echovlm_edge.plugins.dual_path_moe.cuda.archive import Record, write_archive
from echovlm_edge.plugins.dual_path_moe.library import plugin_path
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from tests.gpu.c_launch import c_launch, c_launch_linear

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "plugins" / "dual_path_moe" / "tensorrt"
ANY = 0xFFFFFFFF

needs_plugin = pytest.mark.skipif(
    plugin_path() is None, reason="installed without TensorRT's headers or a C++ compiler"
)

HIDDEN, WIDTHS, BLOCK = 192, (384, 256, 128, 128, 128, 128), 64
INNER, EXPERTS = sum(WIDTHS), len(WIDTHS) - 2
FIELDS = {"group_widths": WIDTHS, "top_k": 2, "norm_topk_prob": 0, "bits": 4, "block_size": BLOCK}
INT4: dict[str, tuple[tuple[int, ...], Any]] = {
    "router": ((EXPERTS, HIDDEN), np.float16),
    "shared_gate": ((1, HIDDEN), np.float16),
    "coefficient": ((2, HIDDEN), np.float16),
    "coefficient_bias": ((2,), np.float16),
    "gate": ((INNER, HIDDEN // 2), np.int8),
    "up": ((INNER, HIDDEN // 2), np.int8),
    "down": ((HIDDEN, INNER // 2), np.int8),
    "gate_scale": ((INNER, HIDDEN // BLOCK), np.float32),
    "up_scale": ((INNER, HIDDEN // BLOCK), np.float32),
    "down_scale": ((HIDDEN, INNER // BLOCK), np.float32),
}
NAMES = {np.float16: "HALF", np.float32: "FLOAT", np.int8: "INT8"}


def floating(dtype: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """The constants of an operator without quantization."""
    shapes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    return {name: (shapes.get(name, shape), dtype) for name, (shape, _) in list(INT4.items())[:7]}


@pytest.fixture(scope="module")
def rtx() -> TensorRT:
    if plugin_path() is None:
        pytest.skip("installed without TensorRT's headers or a C++ compiler")
    try:
        return open_tensorrt("tensorrt_rtx")
    except NotPossibleHere as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def builder(rtx: TensorRT) -> Any:
    return rtx.api.Builder(rtx.logger)


def graph(constants: dict[str, tuple[tuple[int, ...], Any]], x: Any = np.float16, **changed: object) -> bytes:
    """An ONNX model of one DualPathMoE node; `changed` replaces attributes, or leaves them out with None."""
    attributes = {**FIELDS, "plugin_namespace": "echovlm", "plugin_version": "1", **changed}
    kept = {name: value for name, value in attributes.items() if value is not None}
    node = helper.make_node("DualPathMoE", ["x", *constants], ["y"], domain="echovlm", **kept)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(x))
    ends = [helper.make_tensor_value_info(name, kind, ["batch", "sequence", HIDDEN]) for name in ("x", "y")]
    generator = np.random.default_rng(0)
    stored = [
        numpy_helper.from_array(generator.integers(-99, 99, shape).astype(dtype), name)
        for name, (shape, dtype) in constants.items()
    ]
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
    made = helper.make_graph([node], "one_block", ends[:1], ends[1:], stored)
    return helper.make_model(made, opset_imports=imports, ir_version=11).SerializeToString()


def parse(rtx: TensorRT, builder: Any, model: bytes) -> Any:
    """The network, or None if the parser refused."""
    api = rtx.api
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return network if api.OnnxParser(network, rtx.logger).parse(model) else None


def build(rtx: TensorRT, builder: Any, network: Any, most: int = 512) -> bytes:
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 1, HIDDEN), (1, min(16, most), HIDDEN), (1, most, HIDDEN))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, rtx.messages
    return bytes(plan)


# Creation


def create(rtx: TensorRT, values: dict[str, Any], dtype: Any = np.int32) -> Any:
    api = rtx.api
    kind = api.PluginFieldType.INT32 if dtype is np.int32 else api.PluginFieldType.FLOAT32
    fields = [api.PluginField(name, np.atleast_1d(np.array(value, dtype)), kind) for name, value in values.items()]
    creator = api.get_plugin_registry().get_creator("DualPathMoE", "1", "echovlm")
    return creator.create_plugin("block", api.PluginFieldCollection(fields), api.TensorRTPhase.BUILD)


def test_the_registry_creates_the_plugin(rtx: TensorRT) -> None:
    creator = rtx.api.get_plugin_registry().get_creator("DualPathMoE", "1", "echovlm")
    assert [field.name for field in creator.field_names] == list(FIELDS)
    plugin = create(rtx, FIELDS)
    core = plugin.get_capability_interface(rtx.api.PluginCapabilityType.CORE)
    assert (core.plugin_name, core.plugin_version, core.plugin_namespace) == ("DualPathMoE", "1", "echovlm")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"top_k": 5}, "top_k 5 is not between 1 and the 4 experts."),
        ({"group_widths": (384, 256, 128, 64)}, "group_widths has experts of widths 128 and 64"),
        ({"group_widths": (384, 256, 100, 128)}, "group width 100 is not a multiple of block_size 64."),
        ({"bits": 8}, "bits 8 is neither 0 nor 4."),
        ({"block_size": 16}, "block_size 16 is neither 64 nor 128."),
        ({"norm_topk_prob": 3}, "norm_topk_prob 3 is neither 0 nor 1."),
        ({"version": 2}, "stores version 2 of this plugin, and this library knows versions up to 1"),
        ({"sparse": 1}, "there is no field 'sparse'"),
    ],
)
def test_wrong_fields_are_refused_by_name(
    rtx: TensorRT, changed: dict[str, object], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert create(rtx, {**FIELDS, **changed}) is None
    assert sentence in capfd.readouterr().err


def test_fields_that_are_no_integers_are_refused(rtx: TensorRT, capfd: pytest.CaptureFixture[str]) -> None:
    assert create(rtx, FIELDS, np.float32) is None
    assert "group_widths is not of integers" in capfd.readouterr().err


# Networks and engines


@pytest.mark.parametrize(
    ("constants", "x", "attributes"),
    [
        (INT4, np.float16, {}),
        (floating(np.float16), np.float16, {"bits": 0, "block_size": 0}),
        (floating(ml_dtypes.bfloat16), ml_dtypes.bfloat16, {"bits": None, "block_size": None, "norm_topk_prob": None}),
    ],
    ids=["int4", "fp16", "bf16"],
)
def test_an_engine_is_built_from_onnx(
    rtx: TensorRT, builder: Any, constants: dict[str, Any], x: Any, attributes: dict[str, Any]
) -> None:
    network = parse(rtx, builder, graph(constants, x, **attributes))
    assert network is not None, rtx.messages
    output = network.get_output(0)
    assert tuple(output.shape) == (-1, -1, HIDDEN) and output.dtype == network.get_input(0).dtype
    assert network.get_layer(network.num_layers - 1).type == rtx.api.LayerType.PLUGIN_V3
    engine = build(rtx, builder, network)
    weights = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in constants.values())
    assert weights < len(engine) < weights + 65536  # INT8 stays INT8
    for stored in (b"version", *(name.encode() for name in FIELDS), np.array(WIDTHS, np.int32).tobytes()):
        assert stored in engine


def test_a_decode_engine_is_built(rtx: TensorRT, builder: Any) -> None:
    assert build(rtx, builder, parse(rtx, builder, graph(INT4)), most=1)


def refusal(rtx: TensorRT, builder: Any, model: bytes, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert parse(rtx, builder, model) is None
    return capfd.readouterr().err


@pytest.mark.parametrize("name", INT4)
def test_a_wrong_type_is_refused_by_name(
    rtx: TensorRT, builder: Any, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shape, dtype = INT4[name]
    wrong = np.float16 if dtype is np.float32 else np.float32
    said = refusal(rtx, builder, graph({**INT4, name: (shape, wrong)}), capfd)
    assert f"DualPathMoE: {name} is {NAMES[wrong]}, but it must be {NAMES[dtype]}." in said


@pytest.mark.parametrize("name", INT4)
@pytest.mark.parametrize("change", [lambda shape: (*shape[:-1], shape[-1] + 1), lambda shape: (1, *shape)])
def test_a_wrong_shape_is_refused_by_name(
    rtx: TensorRT,
    builder: Any,
    name: str,
    change: Callable[[tuple[int, ...]], tuple[int, ...]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    shape, dtype = INT4[name]
    wrong = change(shape)
    said = refusal(rtx, builder, graph({**INT4, name: (wrong, dtype)}), capfd)
    assert f"DualPathMoE: {name} has shape {list(wrong)}, but it must have {list(shape)}." in said


def test_float32_tokens_are_refused(rtx: TensorRT, builder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert "x is FLOAT, but it must be HALF or BF16." in refusal(rtx, builder, graph(INT4, np.float32), capfd)


def test_missing_scales_are_refused(rtx: TensorRT, builder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    said = refusal(rtx, builder, graph(dict(list(INT4.items())[:7])), capfd)
    assert "there are 8 inputs, but with bits 4 there must be 11: x to down_scale." in said


def test_a_missing_attribute_is_refused(rtx: TensorRT, builder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert "top_k 0 is not between 1 and the 4 experts." in refusal(rtx, builder, graph(INT4, top_k=None), capfd)


# One product


def linear_graph(block_size: int = 64, scale: Any = np.float32, columns: int = 192, **changed: object) -> bytes:
    """An ONNX model of one BlockQuantLinear node, as a decoder's head."""
    stored = [
        numpy_helper.from_array(np.ones((500, columns), np.int8), "weight"),
        numpy_helper.from_array(np.ones((500, 192 // 64), scale), "scale"),
    ]
    attributes = {"bits": 8, "block_size": block_size, "plugin_namespace": "echovlm", "plugin_version": "1", **changed}
    node = helper.make_node("BlockQuantLinear", ["x", "weight", "scale"], ["y"], domain="echovlm", **attributes)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])
        for name, width in (("x", 192), ("y", 500))
    ]
    imports = [helper.make_opsetid("", 24), helper.make_opsetid("echovlm", 1)]
    made = helper.make_graph([node], "head", ends[:1], ends[1:], stored)
    return helper.make_model(made, opset_imports=imports, ir_version=11).SerializeToString()


def test_an_engine_with_one_product_keeps_its_bytes(rtx: TensorRT, builder: Any) -> None:
    network = parse(rtx, builder, linear_graph())
    assert network is not None, rtx.errors.messages
    assert tuple(network.get_output(0).shape) == (-1, 500)
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape("x", (1, 192), (1, 192), (64, 192))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, rtx.errors.messages
    assert 500 * 192 < len(bytes(plan)) < 500 * 192 + 65536  # INT8 stays INT8


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"bits": 4}, "bits 4 is not 8."),
        ({"block_size": 32}, "block_size 32 is neither 64 nor 128."),
        (
            {"block_size": 128},
            "weight has shape [500, 192], but it must have two axes, the second a multiple of block_size 128.",
        ),
        ({"scale": np.float16}, "scale is HALF, but it must be FLOAT."),
        ({"columns": 128}, "x has shape [-1, 192], but its last axis must be weight's second, 128."),
    ],
)
def test_a_product_that_the_kernel_does_not_take_is_refused_by_name(
    rtx: TensorRT, builder: Any, changed: dict[str, Any], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert f"BlockQuantLinear: {sentence}" in refusal(rtx, builder, linear_graph(**changed), capfd)


# The library by itself


@needs_plugin
def test_the_library_loads_without_tensorrt_and_without_a_driver() -> None:
    program = (
        f"import ctypes; library = ctypes.CDLL({str(plugin_path())!r}); library.getCreators; library.setLoggerFinder"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class PlanRequest(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("tokens", "hidden", "dense", "shared", "expert", "experts", "decode"),
            *("gate_up_rows", "down_rows", "tile_tokens", "elements", "multiprocessors"),
        )
    )


class Plan(ctypes.Structure):
    _fields_ = (
        ("launches", ctypes.c_int64),
        ("kernels", ctypes.c_char_p * 5),
        ("grids", ctypes.c_int64 * 2 * 5),
        *(
            (name, ctypes.c_int64)
            for name in ("splits", "group_weights", "inner", "parts", "expert_tokens", "expert_counts")
        ),
        ("workspace_bytes", ctypes.c_int64),
    )


class KernelQuery(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in ("sm", "activation", "bits", "block_size", "experts", "tile_tokens")),
    )


class Kernel(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_char * 64),
        *(
            (name, ctypes.c_int64)
            for name in ("sm", "tile_tokens", "tile_rows", "num_warps", "shared_bytes", "parameters", "offset", "size")
        ),
    )


@cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(plugin_path()))
    loaded.echovlm_largest_workspace.restype = ctypes.c_int64
    return loaded


widths = st.integers(1, 300).map(lambda blocks: 64 * blocks)


@needs_plugin
@settings(max_examples=300)
@given(
    hidden=widths, dense=widths, shared=widths, expert=widths, experts=st.integers(1, 64),
    tokens=st.one_of(st.integers(1, 200), st.integers(1, 5000)),
    rows=st.sampled_from((16, 32, 64)), tile_tokens=st.sampled_from((32, 64, 128)), multiprocessors=st.integers(1, 200),
)  # fmt: skip
def test_the_planner_is_that_of_python(
    hidden: int, dense: int, shared: int, expert: int, experts: int, tokens: int, rows: int, tile_tokens: int, multiprocessors: int
) -> None:  # fmt: skip
    shape = planner.Shape(hidden, (dense, shared, *[expert] * experts), 1, 4, 64)
    elements = 1024

    def tile_of(kernel: str) -> planner.Tile:
        return planner.Tile(tile_tokens, elements if kernel == "sum_parts" else rows)

    sizes = (hidden, dense, shared, expert, experts)
    few = min(tokens, planner.DECODE_TOKENS)
    for decode, count in ((1, few), (0, tokens)):
        expected = (
            planner.plan_decode(count, shape, multiprocessors, tile_of)
            if decode
            else planner.plan_prefill(count, shape, multiprocessors, tile_of)
        )
        request = PlanRequest(count, *sizes, decode, rows, rows, tile_tokens, elements, multiprocessors)
        plan = Plan()
        library().echovlm_plan_launches(ctypes.byref(request), ctypes.byref(plan))
        launches = [(plan.kernels[i].decode(), tuple(plan.grids[i])) for i in range(plan.launches)]
        assert launches == [(launch.kernel, launch.grid) for launch in expected.launches]
        assert {buffer.name: getattr(plan, buffer.name) for buffer in expected.buffers} == {
            buffer.name: buffer.offset for buffer in expected.buffers
        }
        assert expected.workspace <= plan.workspace_bytes < expected.workspace + planner.BUFFER_ALIGNMENT
        assert plan.splits == expected.launches[2 if decode else 3].scalars[-1]
        most = PlanRequest(tokens, *sizes, *[0] * 6)
        assert plan.workspace_bytes <= library().echovlm_largest_workspace(ctypes.byref(most))


@needs_plugin
@pytest.mark.parametrize("tokens", [1 << 50, (1 << 63) - 1])
def test_a_workspace_that_no_device_has_is_not_planned(tokens: int) -> None:
    """Its size would not fit into 64 bits, or wrap to a small one."""
    request = PlanRequest(tokens, 3584, 18944, 5632, 1408, 4, 0, 16, 16, 64, 1024, 100)
    assert library().echovlm_largest_workspace(ctypes.byref(request)) == -1
    plan = Plan(launches=9)
    library().echovlm_plan_launches(ctypes.byref(request), ctypes.byref(plan))
    assert plan.launches == 0


@needs_plugin
def test_archives_are_read_as_python_writes_them(tmp_path: Path) -> None:
    records = [
        Record("route", f"route_{sm}_{limit}", sm, 0, ANY, ANY, limit, 1, 1, 64, 4, 0, 32, 12)
        for sm in (80, 87, 120)
        for limit in (64, 8)
    ]
    cubins = [record.entry.encode() * (number + 1) for number, record in enumerate(records)]
    path = tmp_path / "kernels.cubins"
    write_archive(path, list(zip(records, cubins, strict=True)), bytes(32))
    data = path.read_bytes()

    def find(sm: int, experts: int, archive: bytes = data) -> bytes | str | None:
        found, error = Kernel(), ctypes.create_string_buffer(256)
        query = KernelQuery(b"route", sm, 0, 4, 128, experts, 0)
        result = library().echovlm_find_kernel(
            archive,
            ctypes.c_size_t(len(archive)),
            ctypes.byref(query),
            ctypes.byref(found),
            error,
            ctypes.c_size_t(256),
        )
        if result == 2:
            return error.value.decode()
        return archive[found.offset : found.offset + found.size] if result == 0 else None

    expected = {record.entry: cubin for record, cubin in zip(records, cubins, strict=True)}
    assert find(80, 4) == expected["route_80_8"] and find(80, 9) == expected["route_80_64"]
    assert find(87, 8) == expected["route_87_8"] and find(86, 8) == expected["route_80_8"]
    assert find(120, 64) == expected["route_120_64"] and find(121, 1) is None and find(80, 65) is None
    assert find(80, 1, data[:-1]) == "The archive of CUDA kernels is cut short."


@needs_plugin
@pytest.mark.parametrize(
    ("top_k", "tokens", "reason"),
    [(5, 1, "top_k 5 is not between 1 and the 4 experts"), (2, 1, "driver|kernels"), (2, 100, "driver|kernels")],
)
def test_a_call_that_cannot_be_launched_says_why(top_k: int, tokens: int, reason: str) -> None:
    if reason.startswith("driver") and find_library("cuda"):
        pytest.skip("there is a driver, which would be given null pointers")
    shape = SimpleNamespace(group_widths=(384, 128, 128, 128, 128, 128), top_k=top_k, bits=0, block_size=0, hidden=256)
    with pytest.raises(RuntimeError, match=reason):
        c_launch(shape, 0, tokens, 0, {"y": 0, "workspace": 0}, 0)  # type: ignore[arg-type]


@needs_plugin
@pytest.mark.parametrize(
    ("bits", "tokens", "reason"), [(4, 1, "bits 4 is not 8"), (8, 1, "driver|kernels"), (8, 64, "driver|kernels")]
)
def test_a_product_that_cannot_be_launched_says_why(bits: int, tokens: int, reason: str) -> None:
    if reason.startswith("driver") and find_library("cuda"):
        pytest.skip("there is a driver, which would be given null pointers")
    with pytest.raises(RuntimeError, match=reason):
        c_launch_linear((bits, 64, tokens, 192, 500), (0, 0, 0), 0, 0)


def test_parameters_are_those_of_the_kernels() -> None:
    """tests/native spells each kernel's parameters as the plugin gives them; two scratch pointers follow."""
    pytest.importorskip("triton", reason="the kernels' own list of parameters needs triton")
    from echovlm_edge.plugins.dual_path_moe.cuda.variants import PARAMETERS

    text = (ROOT / "tests" / "native" / "archive_for_tests.hpp").read_text(encoding="utf-8")
    spelled = dict(re.findall(r'\{"(\w+)", "([pi]+)"', text))
    assert spelled == {
        kernel: "".join("p" if kind.startswith("*") else "i" for kind in kinds.values()) + "pp"
        for kernel, kinds in PARAMETERS.items()
    }


# The build


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    command = ["cmake", "-S", str(SOURCES), "-B", str(build), f"-DPython_EXECUTABLE={sys.executable}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_build_without_headers_says_what_to_install(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DTENSORRT_INCLUDE_DIR=")
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert "install kernel-lens (pip install --no-deps kernel-lens==2.0.1) or libnvinfer-headers-dev" in said


@needs_plugin
def test_the_plugin_for_arm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cross-compiled without CUDA's headers, as on a cart's build machine, and driven under qemu."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)")
    folder = ROOT / "build" / "plugin-aarch64"
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'aarch64-linux-gnu.cmake'}"
    done = configure(
        folder, toolchain, "-DCUDA_INCLUDE_DIR=", "-DECHOVLM_NATIVE_TESTS=ON", "-DCMAKE_BUILD_TYPE=MinSizeRel"
    )
    assert done.returncode == 0, done.stderr
    subprocess.run(["cmake", "--build", folder, "--parallel", "2"], check=True, capture_output=True)
    assert (folder / "libechovlm_plugins.so").read_bytes()[18:20] == b"\xb7\0"  # EM_AARCH64
    emulated = [emulator, "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={folder / 'double'}"]
    for arguments in ([*emulated, folder / "plugin_driver"], [*emulated[:3], folder / "plugin_driver", "no-driver"]):
        ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
