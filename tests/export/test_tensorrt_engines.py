"""TensorRT bundles, built without a GPU: what is in the engines, what their graphs compute, what is refused."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from benchmarks.make_checkpoint import config_like_published, make_checkpoint
from echovlm_edge.export import build_engines, device_bundle
from echovlm_edge.export.bundle.journal import Journal
from echovlm_edge.export.bundle.part import write_part
from echovlm_edge.export.bundle.planned_bundle import lower_parts
from echovlm_edge.export.engines import tensorrt_module
from echovlm_edge.export.engines.tensorrt import STEPS, EngineOptions, build_engine
from echovlm_edge.export.engines.tensorrt_graph import inline_lacking
from echovlm_edge.export.engines.tensorrt_module import TensorRT, open_tensorrt
from echovlm_edge.export.engines.timing_cache import TimingCache
from echovlm_edge.export.graph.graph_check import checkable_part
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.targets import target
from echovlm_edge.export.weights.quantize import PrecisionPolicy
from echovlm_edge.export.weights.rounding import round_blocks
from echovlm_edge.export.weights.weight_file import write_weights
from echovlm_edge.plugins.dual_path_moe.library import library_path, plugin_path
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle, Limits, Part, describe_file
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from tests.support import golden, qwen_vl
from tests.support.traces import shared_parts

BuildBundle = Callable[..., Path]
DEMO = Path(__file__).parents[2] / "demo" / "checkpoint"
LAYERS, VISION_BLOCKS = 3, 4  # of the demo checkpoint
HEAD = 1  # of an int4 bundle, in 8 bits: the one other product of our plugin's

needs_tensorrt = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None or plugin_path() is None,
    reason="TensorRT-RTX is not installed, or the package was built without the TensorRT plugin",
)


def run_build(output: Path, target: str, *options: str, checkpoint: Path = DEMO) -> int:
    return build_engines.main(["--checkpoint", str(checkpoint), "--output", str(output), "--target", target, *options])


@pytest.fixture(scope="session")
def for_device(build_bundle: BuildBundle) -> Path:
    """The demo checkpoint's bundle for a Jetson, still to be finished there."""
    return build_bundle(DEMO, target="jetson-orin", precision="int4", max_sequence=512)


@needs_tensorrt
@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_bundle_holds_engines_with_native_layers_and_the_plugin(precision: str, build_bundle: BuildBundle) -> None:
    bundle = Bundle(build_bundle(DEMO, target="rtx", precision=precision), verify=True)
    manifest = bundle.manifest
    assert [part.files[0].name for part in manifest.parts] == [
        "vision_encoder.engine",
        "projector.engine",
        "decoder.engine",
    ]
    on_disk = {file.name for file in bundle.path.iterdir()} - {MANIFEST}
    assert on_disk == {file.name for file in manifest.all_files()}, "something is left of the graphs"
    decoder, vision = manifest.part("decoder"), manifest.part("vision_encoder")
    head = HEAD if precision == "int4" else 0
    assert decoder.layers["PLUGIN_V3"] == LAYERS + head
    assert decoder.operators.get("echovlm::BlockQuantLinear", 0) == head
    assert decoder.layers["ATTENTION_INPUT"] == decoder.layers["ATTENTION_OUTPUT"] == LAYERS
    assert decoder.layers["KV_CACHE_UPDATE"] == decoder.layers["ROTARY_EMBEDDING"] == 2 * LAYERS
    assert "SOFTMAX" not in decoder.layers and "SCATTER" not in decoder.layers
    assert decoder.layers.get("DEQUANTIZE", 0) == (2 * LAYERS if precision == "int4" else 0)
    assert vision.layers["ATTENTION_OUTPUT"] == VISION_BLOCKS
    assert decoder.profiles == ("decode", "prefill") and vision.profiles == ("image",)
    shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in (*decoder.inputs, *decoder.outputs)}
    assert shapes["keys.0"] == shapes["present_values.2"] == ("float16", ("batch", 2, 2048, 32))
    assert shapes["best"] == ("int64", ("rows",))
    assert "tensorrt_rtx" in manifest.toolchain and "tensorrt" not in manifest.toolchain
    assert manifest.operator_library == "echovlm_plugins"


@needs_tensorrt
def test_engines_of_a_model_with_windows_and_without_experts(build_bundle: BuildBundle, tmp_path: Path) -> None:
    """EchoVLM V2's family: every window of an image is a row of one attention, and the dense path runs in the plugin."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", qwen_vl.published("qwen2_5_vl"), dtype=torch.bfloat16)
    manifest = Bundle(build_bundle(checkpoint, target="rtx", precision="int4", max_sequence=512)).manifest
    decoder, vision = manifest.part("decoder"), manifest.part("vision_encoder")
    assert decoder.layers["PLUGIN_V3"] == 3 + HEAD and vision.layers["ATTENTION_OUTPUT"] == 3
    shapes = {tensor.name: (tensor.dtype, tensor.shape) for tensor in vision.inputs}
    assert shapes["window_rows"] == ("int64", ("windows", 64))
    assert shapes["window_mask"] == ("bool", ("windows", 1, 64, 64))
    assert "window_offsets" not in shapes
    assert {stage.stage for stage in manifest.parity} >= {"vision_encoder", "decode"}


@needs_tensorrt
@pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")
def test_the_graphs_that_become_engines_keep_parity(build_bundle: BuildBundle) -> None:
    """float16 between float32 residuals, over a model in bfloat16: errors of about 2^-11 of the values."""
    manifest = Bundle(build_bundle(DEMO, target="rtx", precision="fp16")).manifest
    assert manifest.parity_of == "graphs"
    assert {stage.stage for stage in manifest.parity} == {
        "vision_encoder",
        "projector",
        "token_embedding",
        "prefill",
        "decode",
    }
    for stage in manifest.parity:
        assert stage.relative_error < 2e-3, stage
        assert stage.top1_agreement in (None, 1.0), stage


@needs_tensorrt
def test_a_layer_of_published_width_is_no_larger_than_its_weights(tmp_path: Path) -> None:
    """What a second layer adds to an engine; the code for varying shapes is there once. One engine is for a single sequence."""
    sizes = []
    for layers, batch in ((1, 8), (2, 1)):
        folder = tmp_path / str(layers)
        folder.mkdir()
        config = config_like_published(
            3584, layers, vocab_size=1024, vision_width=160, vision_depth=1, num_key_value_heads=4
        )
        checkpoint = Checkpoint(make_checkpoint(folder / "checkpoint", config, dtype=torch.bfloat16))
        chosen = target("rtx")
        policy = PrecisionPolicy.of("int4", 128, chosen.cache_types[0])
        lowered = lower_parts(checkpoint, policy, chosen, shared_parts)[-1]
        write_weights(
            folder, [lowered.file], checkpoint, Journal(folder, "layer"), lambda _: None, lambda _: round_blocks
        )
        part = write_part(folder, "decoder", "int4", lowered.model, lowered.stored, lowered.file)
        shutil.rmtree(folder / "checkpoint")
        engine = build_engine(open_tensorrt("tensorrt_rtx"), folder, part, EngineOptions(Limits(4096, batch), 8192))
        assert engine.layers["PLUGIN_V3"] == layers + HEAD
        sizes.append((part.files[1].bytes, engine.files[0].bytes))
    (packed, whole), (packed_two, whole_two) = sizes
    assert 180e6 < packed_two - packed < 210e6, "this is no layer of the published width in four bits"
    assert whole_two - whole <= 1.02 * (packed_two - packed)
    assert whole - packed < 16e6, "the code, and what is around it"


def missing(monkeypatch: pytest.MonkeyPatch, *, module: bool, plugin: bool) -> None:
    find = importlib.util.find_spec
    if module:
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, *rest: None if "tensorrt" in name else find(name, *rest)
        )
    if plugin:
        monkeypatch.setattr(tensorrt_module, "plugin_path", lambda: None)


@pytest.mark.parametrize(
    ("module", "plugin", "sentences"),
    [
        (True, False, ["tensorrt_rtx", install_hint("rtx")]),
        (False, True, ["libechovlm_plugins.so", "C++ compiler and TensorRT's headers"]),
        (True, True, ["tensorrt_rtx", install_hint("rtx"), "C++ compiler and TensorRT's headers"]),
    ],
)
def test_what_is_missing_is_named_with_how_to_install_it(
    module: bool,
    plugin: bool,
    sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not module and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed")
    if not plugin and plugin_path() is None:
        pytest.skip("the package was built without the TensorRT plugin")
    missing(monkeypatch, module=module, plugin=plugin)
    assert run_build(tmp_path / "bundle", "rtx") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and all(sentence in error for sentence in sentences), error
    assert not any(tmp_path.iterdir())


@needs_tensorrt
def test_a_checkpoint_of_other_widths_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_build(tmp_path / "bundle", "rtx", checkpoint=golden.CHECKPOINT) == 2
    assert "multiples of 64" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_device_bundle_waits_for_its_device(for_device: Path) -> None:
    with pytest.raises(NotPossibleHere, match=r"build_on_device\.sh on a jetson-orin"):
        Bundle(for_device)
    bundle = Bundle(for_device, verify=True, finished=False)
    assert bundle.manifest.part("decoder").files[0].name == "decoder.onnx"
    assert (for_device / "build_on_device.sh").stat().st_mode & 0o111 == 0o111


@needs_tensorrt
def test_the_device_finishes_its_bundle_without_torch(for_device: Path, tmp_path: Path) -> None:
    """As its script does, with the TensorRT that is at hand: torch and what only an integrator has are out of reach."""
    bundle = Path(shutil.copytree(for_device, tmp_path / "bundle"))
    program = """
import sys
for name in ("torch", "transformers", "onnxscript", "onnx_ir", "safetensors", "optimum"):
    sys.modules[name] = None
from echovlm_edge.export.device_bundle import main
sys.exit(main(sys.argv[1:]))
"""
    finish = [sys.executable, "-c", program, bundle, "--module", "tensorrt_rtx"]
    done = subprocess.run([*map(str, finish)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = Bundle(bundle, verify=True).manifest
    assert manifest.part("decoder").layers["PLUGIN_V3"] == LAYERS + HEAD
    assert manifest.finish_with is None and manifest.target == "jetson-orin"
    assert {file.name for file in bundle.iterdir()} == {MANIFEST} | {file.name for file in manifest.all_files()}
    assert Bundle(for_device, verify=True, finished=False), "the weights of the copy's origin were touched"
    again = subprocess.run([*map(str, finish)], capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "finished already" in again.stderr


@needs_tensorrt
def test_a_device_bundle_stays_as_it_was_where_finishing_fails(for_device: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(for_device, tmp_path / "bundle"))
    before = (bundle / MANIFEST).read_bytes()
    (bundle / "decoder.data").write_bytes((bundle / "decoder.data").read_bytes()[:-1] + b"x")
    assert device_bundle.main([str(bundle), "--module", "tensorrt_rtx"]) == 2
    assert (bundle / MANIFEST).read_bytes() == before and (bundle / "decoder.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("content", "sentence"), [(b"\x7fELF" + bytes(14) + b"\x3e\0", "aarch64"), (None, "cannot be read")]
)
def test_a_plugin_that_is_not_the_devices_is_refused(
    content: bytes | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "libechovlm_plugins.so"
    if content:
        plugin.write_bytes(content)
    folder = tmp_path / "bundles"
    folder.mkdir()
    options = ("--max-sequence", "64", "--device-plugin", str(plugin))
    assert run_build(folder / "bundle", "jetson-orin-nano", *options) == 2
    assert sentence in capsys.readouterr().err
    assert not any(folder.iterdir())


@pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")
def test_an_older_tensorrt_gets_the_same_computation(for_device: Path, tmp_path: Path) -> None:
    """The decoder with attention, rotary embedding, norm and cache update spelled out gives the same logits and caches."""
    manifest = Bundle(for_device, finished=False).manifest
    folder = Path(shutil.copytree(for_device, tmp_path / "bundle"))
    part = checkable_part(folder, manifest.part("decoder"))
    native = folder / part.files[0].name
    inlined = folder / "decoder.older.onnx"
    older = inline_lacking(onnx.load(native, load_external_data=False))
    assert not {node.op_type for node in older.graph.node} & {
        *("Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter")
    }
    onnx.save(older, inlined)
    rng = np.random.default_rng(0)
    length, past, context = 5, 7, 16
    cache = (1, 2, context, 32)
    feeds: dict[str, Any] = {
        "embeddings": rng.standard_normal((1, length, Checkpoint(DEMO).config.decoder.hidden_size)).astype(np.float32),
        "cos": np.cos(rng.random((1, length, 16))).astype(np.float32),
        "sin": np.sin(rng.random((1, length, 16))).astype(np.float32),
        "past": np.array([past]),
        "logit_rows": np.arange(length),
        "mask": (np.arange(context) <= past + np.arange(length)[:, None])[None, None],
    }
    for layer in range(LAYERS):
        for name in ("keys", "values"):
            feeds[f"{name}.{layer}"] = rng.standard_normal(cache).astype(np.float16)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    expected, actual = (
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)
        for path in (native, inlined)
    )
    for want, got in zip(expected, actual, strict=True):
        # Attention's sums are in float16 where it is spelled out: 2^-11 of each of some hundred values.
        np.testing.assert_allclose(got, want, atol=2e-2 * float(np.abs(want).max()))


@needs_tensorrt
def test_an_older_tensorrt_takes_the_inlined_graph(for_device: Path, tmp_path: Path) -> None:
    """That the parser takes it is seen with the TensorRT at hand; that TensorRT 10.3 does, only a device can show."""

    @dataclass(frozen=True)
    class Older(TensorRT):
        def release(self) -> tuple[int, int]:
            return (10, 3)

    folder = Path(shutil.copytree(for_device, tmp_path / "bundle"))
    trt = open_tensorrt("tensorrt_rtx")
    older = Older(**vars(trt))
    decoder = Bundle(folder, finished=False).manifest.part("decoder")
    layers = build_engine(older, folder, decoder, EngineOptions(Limits(512, 1), 1024)).layers
    assert layers["PLUGIN_V3"] == LAYERS + HEAD and layers["SCATTER"] == 2 * LAYERS and layers["SOFTMAX"] == LAYERS
    assert not {"ATTENTION_INPUT", "ROTARY_EMBEDDING", "KV_CACHE_UPDATE"} & layers.keys()


def small_part(folder: Path, operator: str = "Relu") -> Part:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(operator, ["features"], ["embeddings"])],
        "projector",
        [onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["n", 8])],
        [onnx.helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["n", 8])],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)]), folder / "projector.onnx"
    )
    return Part("projector", "fp16", (describe_file(folder, "projector.onnx"),))


@needs_tensorrt
def test_progress_reaches_its_end_and_an_interrupt_ends_a_build(tmp_path: Path) -> None:
    trt, part, options = open_tensorrt("tensorrt_rtx"), small_part(tmp_path), EngineOptions(Limits(64, 1), 64)
    told: list[int] = []
    build_engine(trt, tmp_path, part, options, told.append)
    assert sum(told) == STEPS and len(told) > 1

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "projector.engine").unlink()
    with pytest.raises(KeyboardInterrupt):
        build_engine(trt, tmp_path, part, options, interrupted)
    assert [file.name for file in tmp_path.iterdir()] == ["projector.onnx"]


@needs_tensorrt
def test_what_tensorrt_refuses_is_one_sentence(tmp_path: Path) -> None:
    part = small_part(tmp_path, "NoSuchOperator")
    with pytest.raises(NotPossibleHere, match=r"tensorrt_rtx .* cannot build projector\.engine \(.+\): ") as refused:
        build_engine(open_tensorrt("tensorrt_rtx"), tmp_path, part, EngineOptions(Limits(64, 1), 64))
    assert "\n" not in str(refused.value)


@needs_tensorrt
def test_a_folder_that_cannot_hold_the_link_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link is there on a machine where engines were built, so a wheel's folder without it stands in."""
    (tmp_path / "libtensorrt_rtx.so.1").touch()
    spec = importlib.util.spec_from_file_location(
        "libs", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec if name == "tensorrt_rtx_libs" else find(name))
    open_tensorrt("tensorrt_rtx")
    link = tmp_path / "libtensorrt_rtx.so"
    assert link.is_symlink() and link.readlink() == Path("libtensorrt_rtx.so.1")
    open_tensorrt("tensorrt_rtx")  # it is there already
    link.unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with pytest.raises(NotPossibleHere, match=r"Permission denied.*ln -s libtensorrt_rtx\.so\.1"):
        open_tensorrt("tensorrt_rtx")


class Cache:
    """A timing cache as TensorRT's."""

    def __init__(self, known: bytes) -> None:
        self.known = known

    def serialize(self) -> bytes:
        return self.known + b" and more"


class Config:
    """What a timing cache is given to."""

    def create_timing_cache(self, known: bytes) -> Cache:
        return Cache(known)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> Cache:
        return self.cache


def test_measured_times_are_kept_for_the_next_build(tmp_path: Path) -> None:
    cache, config = TimingCache(tmp_path / "cache"), Config()
    trt = TensorRT("tensorrt", "10.13.3", None, None, [])
    cache.load(trt, config)
    assert config.cache.known == b""
    cache.save(trt, config)
    cache.load(trt, config)
    assert config.cache.known == b" and more"
    cache.load(replace(trt, version="10.14.1"), config)
    assert config.cache.known == b"", "another version's times were used"
    unwritable = TimingCache(Path("/proc/none"))
    unwritable.load(trt, config)
    unwritable.save(trt, config)
