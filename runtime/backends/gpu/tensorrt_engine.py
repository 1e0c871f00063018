"""A bundle's serialized engines, loaded by the TensorRT module that built them: `tensorrt_rtx` or `tensorrt`."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice, CudaStream, DeviceFailed
from echovlm_edge.runtime.backends.gpu.device import Binding, Context, EngineLimits, PartEngine, Shape, step_sizes
from echovlm_edge.runtime.backends.gpu.memory import check_memory, check_working_memory
from echovlm_edge.runtime.backends.gpu.tensorrt_log import TensorRTErrors, error_logger
from echovlm_edge.runtime.bundle.manifest import Bundle, Part
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint

MODULES = {
    "tensorrt_rtx": install_hint("rtx"),
    "tensorrt": "it comes with JetPack, or pip install tensorrt",
}
UNSUPPORTED = "does not support this compute capability"  # TensorRT-RTX's message, for example on an H200
DTYPES = {"FLOAT": "float", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


def load_engines(bundle: Bundle, device: CudaDevice, memory: SlotMemory, plugins: Path | None) -> dict[str, PartEngine]:
    """Load the bundle's parts onto the device.

    Args:
        bundle: a bundle of TensorRT engines.
        device: the GPU to load them on.
        memory: the slots for which there must be memory.
        plugins: the plugin library, if this install has one.

    Raises:
        NotPossibleHere: the module or the plugins are missing, the memory is too small, or an engine was built by another
            TensorRT or for another GPU; the sentence names which.
    """
    module = _module(bundle)
    check_memory(bundle, device, memory)
    errors = TensorRTErrors()
    logger = error_logger(module, errors)
    if bundle.manifest.operator_library:
        if plugins is None:
            raise NotPossibleHere(
                f"The bundle {bundle.path} needs the plugin library {bundle.manifest.operator_library}, which this install was "
                "made without: install a C++ compiler and TensorRT's headers, and reinstall echovlm-edge."
            )
        registry = module.get_plugin_registry()
        if registry.get_creator("DualPathMoE", "1", "echovlm") is None and registry.load_library(str(plugins)) is None:
            raise NotPossibleHere(
                f"TensorRT cannot load the plugin library {plugins} ({errors.last}): reinstall echovlm-edge."
            )
    runtime = module.Runtime(logger)
    engines = {
        part.name: TensorRTEngine(
            module, _deserialize(module, runtime, bundle, part, errors), part, device, runtime, errors
        )
        for part in bundle.manifest.parts
    }
    for engine in engines.values():
        engine.check_tensors(bundle.path)
    working = {name: max(engine.working_bytes()) for name, engine in engines.items()}
    # The decoder has a context for prompts, and one for each recorded step.
    working["decoder"] += len(step_sizes(memory.count)) * min(engines["decoder"].working_bytes())
    check_working_memory(bundle, device, memory, working)
    return {**engines}


def module_of(bundle: Bundle) -> str:
    """Return the Python module that built the engines, according to bundle.json."""
    return next(name for name in MODULES if name in bundle.manifest.toolchain)


@dataclass
class TensorRTEngine:
    """One part's engine, a `PartEngine`."""

    module: Any
    engine: Any
    part: Part
    device: CudaDevice
    runtime: Any  # outlives the engine
    errors: TensorRTErrors

    def new_context(self, stream: CudaStream, recorded: bool) -> Context:
        """Make a context on a stream, as `PartEngine.new_context` does."""
        return TensorRTContext(self, self._execution_context(recorded), stream)

    @property
    def limits(self) -> EngineLimits:
        """The decoder's first profile is that of steps."""
        _, _, most = self.engine.get_tensor_profile_shape("embeddings", 0)  # [batch, sequence, hidden_size]
        return EngineLimits(tokens=most[1], recorded=True)

    def working_bytes(self) -> list[int]:
        """Return the bytes of device memory that one context needs, for each profile."""
        return [
            self.engine.get_device_memory_size_for_profile_v2(profile)
            for profile in range(self.engine.num_optimization_profiles)
        ]

    def profiled_runs(self) -> None:
        """None: its contexts report each layer's time."""

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """Find the optimization profile that admits these input shapes and is closest to them.

        Raises:
            NotPossibleHere: no profile admits them.
        """
        admitting = []
        for profile in range(self.engine.num_optimization_profiles):
            size = 0
            for name, shape in shapes.items():
                smallest, _, largest = self.engine.get_tensor_profile_shape(name, profile)
                if not all(low <= n <= high for low, n, high in zip(smallest, shape, largest, strict=True)):
                    break
                size += _product(tuple(largest))
            else:
                admitting.append((size, profile))
        if not admitting:
            inputs = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:5])
            raise NotPossibleHere(
                f"The {self.part.name} engine was not built for the shapes {inputs}: build the bundle with a larger "
                "--max-sequence, or send smaller images."
            )
        return min(admitting)[1]

    def check_tensors(self, bundle: Path) -> None:
        """Compare the engine's inputs and outputs with those that bundle.json states.

        Raises:
            NotPossibleHere: they differ.
        """
        stated = {tensor.name: tensor.dtype for tensor in (*self.part.inputs, *self.part.outputs)}
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        found = {name: DTYPES.get(self.engine.get_tensor_dtype(name).name, "?") for name in names}
        if found != stated:
            name = next(name for name in {**stated, **found} if stated.get(name) != found.get(name))
            raise NotPossibleHere(
                f"{bundle / self.part.files[0].name} is not the engine that bundle.json describes (tensor {name} is "
                f"{found.get(name, 'missing')} instead of {stated.get(name, 'absent')}): rebuild the bundle."
            )

    def _execution_context(self, recorded: bool) -> Any:
        strategy = (
            self.module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        )  # memory for the profile in use, not for the largest
        if not hasattr(self.engine, "create_runtime_config"):
            return self.engine.create_execution_context(strategy)
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if recorded and hasattr(self.module, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX compiles kernels for a shape in the background, but a graph keeps the kernels that it was captured with.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self.module.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        return self.engine.create_execution_context(config)


@dataclass
class TensorRTContext:
    """A `Context` of TensorRT."""

    owner: TensorRTEngine
    context: Any
    stream: CudaStream
    _profile: int = 0
    _profiler: Any = None
    _profiles: dict[tuple[Shape, ...], int] = field(default_factory=dict)

    def queue(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding]) -> None:
        """Queue a run, as `Context.queue` does."""
        stream = int(self.stream.handle)
        self._use_profile(inputs, stream)
        for name, binding in inputs.items():
            self._done(self.context.set_input_shape(name, binding.shape), f"the shape of {name}")
            self._done(self.context.set_tensor_address(name, binding.address), f"the address of {name}")
        for name, binding in outputs.items():
            self._done(self.context.set_tensor_address(name, binding.address), f"the address of {name}")
        self._done(self.context.execute_async_v3(stream), "the run")

    def recordable(self) -> bool:
        """Check whether the last run can be captured; only TensorRT-RTX has runs that cannot."""
        asks = getattr(self.context, "is_stream_capturable", None)
        return asks is None or bool(asks(int(self.stream.handle)))

    def profile(self, report: Callable[[str, float], None]) -> None:
        """Report each layer's time after every run, as `Context.profile` does."""
        self._profiler = _profiler(self.owner.module, report)  # TensorRT keeps no reference to it
        self.context.profiler = self._profiler

    def _use_profile(self, inputs: Mapping[str, Binding], stream: int) -> None:
        shapes = {name: binding.shape for name, binding in inputs.items()}
        key = tuple(shapes.values())
        if key not in self._profiles:
            self._profiles[key] = self.owner.profile_for(shapes)
        if self._profiles[key] != self._profile:
            self._profile = self._profiles[key]
            self._done(self.context.set_optimization_profile_async(self._profile, stream), "the profile")

    def _done(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise DeviceFailed(f"TensorRT refused {what} of the {self.owner.part.name} ({self.owner.errors.last})")


def _module(bundle: Bundle) -> Any:
    name = module_of(bundle)
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotPossibleHere(
            f"The bundle {bundle.path} needs the Python module {name}, which is not installed: {MODULES[name]}."
        ) from None


def _profiler(module: Any, report: Callable[[str, float], None]) -> Any:
    class Profiler(module.IProfiler):  # TensorRT calls it back
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            report(layer_name, ms)

    return Profiler()


def _deserialize(module: Any, runtime: Any, bundle: Bundle, part: Part, errors: TensorRTErrors) -> Any:
    path = bundle.path / part.files[0].name
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as serialized:
        view = memoryview(serialized)  # memory-mapped: the system can drop the file's pages, but not those of a copy
        try:
            engine = runtime.deserialize_cuda_engine(view)
        finally:
            view.release()
    if engine is None:
        name = module_of(bundle)
        built, here = bundle.manifest.toolchain[name], module.__version__
        reason = f"it was built by {name} {built}, here is {here}" if built != here else errors.last
        fix = "on this machine or for this GPU" if UNSUPPORTED not in reason else "with --target cuda"
        raise NotPossibleHere(f"TensorRT cannot load {path} ({reason}): rebuild the bundle {fix}.")
    return engine


def _product(shape: Shape) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
