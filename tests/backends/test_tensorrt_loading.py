"""TensorRT bundles from file to text over CUDA's and TensorRT's interfaces, and every refusal on the way."""

from __future__ import annotations

import dataclasses
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from echovlm_edge.plugins.dual_path_moe.library import PLUGIN_LIBRARY
from echovlm_edge.runtime.backends import SlotMemory, new_cache, opening
from echovlm_edge.runtime.backends.bundle_memory import BundleShape, device_items
from echovlm_edge.runtime.backends.gpu import cuda_driver, tensorrt_engine
from echovlm_edge.runtime.backends.gpu.backend import GpuBackend
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice, DeviceFailed
from echovlm_edge.runtime.backends.gpu.tensorrt_log import TensorRTErrors, error_logger
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle, FileSpec
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.prompting.rotary import Angles
from echovlm_edge.runtime.resources.system_files import memory_info
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.serving.test_golden_service import generate
from tests.support import golden, numpy_cuda
from tests.support.numpy_cuda import CHUNK, NumpyDriver, NumpyTensorRT
from tests.support.numpy_device import NumpyDevice
from tests.support.tensorrt_bundles import tensorrt_like

BuildBundle = Callable[..., Path]
MAX_SEQUENCE = 512
ONE_SLOT = SlotMemory(1, MAX_SEQUENCE)
FEW = EngineOptions(1, prefix_bytes=0)
ANGLES = Angles(np.ones((1, 8), np.float32), np.zeros((1, 8), np.float32))  # of position 0


@dataclasses.dataclass
class Machine:
    """A machine whose GPU is of numpy."""

    device: NumpyDevice
    driver: NumpyDriver
    tensorrt: NumpyTensorRT


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    device = NumpyDevice(memory=1 << 28)
    machine = Machine(device, NumpyDriver(device), NumpyTensorRT(device, MAX_SEQUENCE))
    monkeypatch.setattr(cuda_driver, "_driver", lambda: machine.driver)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", machine.tensorrt)
    return machine


@pytest.fixture(scope="module")
def folder(build_bundle: BuildBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint as a TensorRT bundle."""
    portable = build_bundle(target="portable")
    return tensorrt_like(portable, tmp_path_factory.mktemp("trt") / "bundle", capacity=MAX_SEQUENCE).path


def changed(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle with another bundle.json."""
    bundle.manifest = dataclasses.replace(bundle.manifest, **changes)
    return bundle


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echovlm_edge.runtime.engine.scheduling.policy.CHUNK", CHUNK)


@pytest.mark.usefixtures("short_chunks")
def test_a_bundle_is_opened_and_answers_as_the_authors_do(folder: Path, machine: Machine, case: golden.Golden) -> None:
    engine = ReportEngine.open(
        folder, options=dataclasses.replace(FEW, drafting=False)
    )  # a recorded step for each token
    backend = engine.model.backend
    assert isinstance(backend, GpuBackend)
    server = ReportServer(engine, ServerOptions("127.0.0.1:0"))  # whose calls run in threads of their own
    try:
        with Connection(server.address) as client:
            for _ in range(2):
                streamed, result = generate(client, case)
                assert list(result.token_ids) == case.arrays["generated_ids"].tolist()
                assert streamed == case.text
    finally:
        server.stop()
    assert machine.device.launches > 50


@pytest.mark.usefixtures("short_chunks")
def test_a_dropped_engine_leaves_nothing_on_the_device(folder: Path, machine: Machine) -> None:
    backend = opening.open_backend(Bundle(folder))
    cache = new_cache(backend, MAX_SEQUENCE)
    for index in range(4):
        backend.decode(np.zeros((1, 96), np.float32), ANGLES, index, np.zeros(1, np.int64), cache)
    assert machine.driver.blocks
    del backend, cache
    gc.collect()
    assert not machine.driver.blocks and not any(machine.driver.graphs.values())
    assert len(machine.driver.destroyed_streams) == len(machine.device.streams) == 2


def test_a_chunk_no_profile_admits_is_refused(folder: Path, machine: Machine) -> None:
    backend = opening.open_backend(Bundle(folder))
    tokens = np.zeros((CHUNK + 1, 96), np.float32)
    angles = Angles(*np.repeat([ANGLES.cos, ANGLES.sin], CHUNK + 1, axis=1))
    with pytest.raises(
        NotPossibleHere, match=rf"decoder engine was not built for the shapes embeddings \[1, {CHUNK + 1}"
    ):
        backend.decode(tokens, angles, 0, np.array([CHUNK]), new_cache(backend, MAX_SEQUENCE))
    assert not machine.device.is_recording()


def test_no_driver(folder: Path, machine: Machine) -> None:
    machine.driver.present = False
    with pytest.raises(NotPossibleHere, match=r"finds no GPU here .*NO_DEVICE.*install NVIDIA's driver.*gpu\.conf"):
        ReportEngine.open(folder, options=FEW)


def test_no_cuda_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(NotPossibleHere, match=r"cuda-python, which is not installed: pip install cuda-python"):
        ReportEngine.open(folder, options=FEW)


@pytest.mark.parametrize(("name", "fix"), [("tensorrt_rtx", r"pip install .*\[rtx\]"), ("tensorrt", "JetPack")])
def test_no_tensorrt(folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str, fix: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    bundle = changed(Bundle(folder), toolchain={name: "10.3.0"})
    with pytest.raises(NotPossibleHere, match=f"needs the Python module {name}, which is not installed: .*{fix}"):
        opening.open_backend(bundle)


def test_too_little_memory_for_engines_and_cache_is_told_before_anything_is_loaded(
    folder: Path, machine: Machine
) -> None:
    bundle = Bundle(folder)
    items = device_items(BundleShape.of(bundle.manifest), ONE_SLOT)
    machine.device.memory = sum(item.bytes for item in items) - 1
    machine.tensorrt.Runtime = None  # type: ignore[assignment, method-assign] # nothing is loaded
    needed = (machine.device.memory + 1) / 1e9
    with pytest.raises(NotPossibleHere) as refusal:
        ReportEngine.open(folder, options=FEW)
    for part in (f"{needed:.2f} GB", "numpy", "weights", "a KV cache of 512 tokens", "are free", "--max-sequence"):
        assert part in str(refusal.value)


def test_too_little_memory_to_work_in(folder: Path, machine: Machine) -> None:
    machine.tensorrt.working_bytes = machine.device.memory
    with pytest.raises(NotPossibleHere, match=r"working memory of the decoder 0\.54 GB"):
        ReportEngine.open(folder, options=FEW)


def test_a_shared_memory_counts_what_the_file_cache_would_give(
    folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    3000 kB\n", encoding="ascii")
    monkeypatch.setattr(cuda_driver, "memory_info", lambda: memory_info(tmp_path))
    machine.device.memory = 1000
    assert CudaDevice().free_bytes() == 1000
    machine.driver.integrated = True
    assert CudaDevice().free_bytes() == 3000 * 1024


def test_a_shared_memory_that_is_hidden_is_the_devices(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As systemd's ProcSubset=pid hides it."""
    monkeypatch.setattr(cuda_driver, "memory_info", lambda: memory_info(tmp_path))
    machine.device.memory, machine.driver.integrated = 1000, True
    assert CudaDevice().free_bytes() == 1000


def test_memory_that_is_dropped_while_a_step_is_recorded_is_freed(machine: Machine) -> None:
    """An older engine is collected whenever Python collects, which may be within a recording of the next one."""
    device = CudaDevice()
    stream, memory, dropped = device.new_stream(), device.allocate(256), [device.allocate(256), device.stage(256)]

    def record() -> None:
        stream.clear(memory.address, 256)
        dropped.clear()

    stream.record(record).launch()
    stream.synchronize()
    assert list(machine.driver.blocks) == [memory.address] and machine.device.launches == 1


def test_memory_that_runs_out_later_is_one_sentence(folder: Path, machine: Machine) -> None:
    device = CudaDevice()
    machine.device.memory = 2_000_000_000
    with pytest.raises(NotPossibleHere, match=r"numpy has 2.00 GB of memory left, 3.00 GB are needed"):
        device.allocate(3_000_000_000)


def test_an_engine_for_another_gpu_says_tensorrts_own_reason(folder: Path, machine: Machine, tmp_path: Path) -> None:
    bundle = _with_decoder(folder, tmp_path, b"\x00not for this GPU")
    with pytest.raises(NotPossibleHere, match=r"decoder.engine \(the engine is for compute capability 12.0\): rebuild"):
        opening.open_backend(bundle)


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_sent_to_another_target(
    folder: Path, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own words, as they were seen on an H200."""
    words = "The engine cannot run on this GPU. TensorRT-RTX does not support this compute capability, so"
    monkeypatch.setattr(numpy_cuda, "WHY_NOT", words)
    bundle = _with_decoder(folder, tmp_path, b"\x00not for this GPU")
    with pytest.raises(NotPossibleHere, match=r"rebuild the bundle with --target cuda\.$"):
        opening.open_backend(bundle)


def test_an_engine_of_another_version_names_both(folder: Path, machine: Machine, tmp_path: Path) -> None:
    bundle = changed(_with_decoder(folder, tmp_path, b"\x00newer"), toolchain={"tensorrt_rtx": "1.9.0"})
    with pytest.raises(NotPossibleHere, match=r"built by tensorrt_rtx 1.9.0, here is 1.7.1.116\): rebuild the bundle"):
        opening.open_backend(bundle)


def test_an_engine_that_bundle_json_does_not_describe(folder: Path, machine: Machine) -> None:
    bundle = Bundle(folder)
    parts = [
        dataclasses.replace(part, outputs=part.outputs[:-1]) if part.name == "decoder" else part
        for part in bundle.manifest.parts
    ]
    with pytest.raises(
        NotPossibleHere, match=r"is not the engine that bundle\.json describes .tensor best is int64 instead of"
    ):
        opening.open_backend(changed(bundle, parts=tuple(parts)))


def test_plugins(folder: Path, machine: Machine) -> None:
    bundle, device = changed(Bundle(folder), operator_library=PLUGIN_LIBRARY), CudaDevice()
    with pytest.raises(NotPossibleHere, match="needs the plugin library echovlm_plugins"):
        tensorrt_engine.load_engines(bundle, device, ONE_SLOT, None)
    with pytest.raises(NotPossibleHere, match=r"cannot load the plugin library /nowhere\.so"):
        tensorrt_engine.load_engines(bundle, device, ONE_SLOT, Path("/nowhere.so"))
    machine.tensorrt.plugins["/lib.so"] = object()
    assert set(tensorrt_engine.load_engines(bundle, device, ONE_SLOT, Path("/lib.so"))) == {
        "vision_encoder",
        "projector",
        "decoder",
    }


def test_a_bundle_brings_its_plugin_or_takes_the_installs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "plugin_path", lambda: Path("/installed.so"))
    bundle = Bundle(folder)
    assert opening.plugin_for(bundle) == Path("/installed.so")
    brought = FileSpec("libechovlm_plugins.so", 1, "")
    changed(bundle, files=(*bundle.manifest.files, brought))
    assert opening.plugin_for(bundle) == folder / brought.name


def test_a_call_that_fails_is_named(folder: Path, machine: Machine) -> None:
    device = CudaDevice()
    stream = device.new_stream()
    machine.driver.current.context = None
    with pytest.raises(DeviceFailed, match="cuStreamSynchronize: CUDA_ERROR_INVALID_CONTEXT"):
        stream.synchronize()
    device.enter()
    with pytest.raises(DeviceFailed, match="could not record"):
        stream.record(lambda: None)


def test_other_bundles_still_open_with_onnx_runtime(golden_bundle: Path) -> None:
    assert isinstance(opening.open_backend(Bundle(golden_bundle)), OnnxRuntimeBackend)


def test_the_names_that_are_called_exist() -> None:
    """What stands in for CUDA and TensorRT here has only names that the real ones have."""
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-python is not installed")
    called = set(re.findall(r'"(cu[A-Z]\w+)"', Path(cuda_driver.__file__).read_text(encoding="utf-8")))
    called |= {name for name in dir(NumpyDriver) if name.startswith(("cu", "CU"))}
    assert len(called) > 15 and not [name for name in called if not hasattr(driver, name)]
    assert driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_INTEGRATED and driver.CUstream_flags.CU_STREAM_NON_BLOCKING
    assert driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    assert driver.CUmemorytype.CU_MEMORYTYPE_HOST and driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
    for field in ("MemoryType", "Host", "Device", "Pitch", "Height"):
        assert {f"src{field}", f"dst{field}"} <= set(dir(driver.CUDA_MEMCPY3D))


def test_the_names_of_tensorrt_exist() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    for stand_in, real in (
        (NumpyTensorRT, trt),
        (numpy_cuda.NumpyRuntime, trt.Runtime),
        (numpy_cuda.NumpyEngine, trt.ICudaEngine),
        (numpy_cuda.NumpyContext, trt.IExecutionContext),
    ):
        names = {name for name, value in vars(stand_in).items() if callable(value) and not name.startswith("_")}
        assert not [name for name in names if not hasattr(real, name)], real
    assert trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE is not None
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER is not None
    for name in ("set_execution_context_allocation_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert hasattr(trt.IRuntimeConfig, name)
    types = {trt.float32: "FLOAT", trt.float16: "HALF", trt.int64: "INT64", trt.int32: "INT32", trt.bool: "BOOL"}
    assert {kind.name: name for kind, name in types.items()} == {name: name for name in types.values()}


def test_the_real_tensorrt_says_why_it_cannot_load(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is needed to be told that a file is no engine, and what is told comes from TensorRT's own logger."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    bundle = changed(_with_decoder(folder, tmp_path, b"\x00" * 4096), toolchain={"tensorrt_rtx": trt.__version__})
    monkeypatch.setattr(cuda_driver, "_driver", lambda: NumpyDriver(NumpyDevice()))
    with pytest.raises(NotPossibleHere, match=r"TensorRT cannot load .*vision_encoder.engine \((?!it gave no reason)"):
        opening.open_backend(bundle)


def _with_decoder(folder: Path, target: Path, serialized: bytes) -> Bundle:
    """The bundle with another decoder.engine."""
    for file in folder.iterdir():
        (target / file.name).symlink_to(file)
    bundle = Bundle(target)
    (target / "decoder.engine").unlink()
    (target / "decoder.engine").write_bytes(serialized)
    return bundle


def test_one_logger_keeps_errors_and_nothing_else() -> None:
    module, errors = NumpyTensorRT(NumpyDevice(), MAX_SEQUENCE), TensorRTErrors()
    logger = error_logger(module, errors)
    assert errors.last == "it gave no reason"
    for severity, message in (("error", "first.\nmore"), ("warning", "aside"), ("internal error", "second.\nmore")):
        logger.log(severity, message)
    assert list(errors.messages) == ["first.\nmore", "second.\nmore"] and errors.last == "second"
