"""The targets a bundle can be built for: how each is lowered, where its engines are built, what it runs on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace

from echovlm_edge.export import devices
from echovlm_edge.export.devices import Device
from echovlm_edge.export.engines import onnxruntime, onnxruntime_cuda, tensorrt_rules
from echovlm_edge.export.engines.gpu_kernels import TAKEN
from echovlm_edge.export.graph import standard
from echovlm_edge.export.graph.lower import Rule
from echovlm_edge.export.weights.quantize import PRECISIONS
from echovlm_edge.plugins.dual_path_moe.gpu_kernels import has_gpu_kernels
from echovlm_edge.plugins.dual_path_moe.library import OPERATOR_LIBRARY, PLUGIN_LIBRARY, library_path
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import reinstall_hint
from echovlm_edge.runtime.resources.nvml import compute_capability

GPU_PRECISIONS = ("int4", "fp16")  # that the GPU kernels of DualPathMoE read
GPU_CACHES = ("float16",)


@dataclass(frozen=True)
class Target:
    """Where a bundle will run.

    Attributes:
        name: as `--target` spells it.
        summary: one line for `--help`.
        rules: what its graphs are lowered by.
        device: the machine that its estimates are for, or None where that can be any.
        precisions: of `--precision`, those it can do.
        cache_types: of `--kv-cache`, those it can do; the first unless another is asked for.
        operator_library: the native library that the lowered graphs may need, or None.
        tensorrt: the module that builds its engines, or None where ONNX Runtime runs the graphs.
        tensorrt_versions: that the target's system software comes with.
        on_device: whether only the device itself can build them.
        warning: what the build warns of.
        unused_warning: what it warns of instead if the graphs do not need `operator_library`, as it does not take the model's weights.
    """

    name: str
    summary: str
    rules: Mapping[str, Rule]
    device: Device | None = None
    precisions: tuple[str, ...] = PRECISIONS
    cache_types: tuple[str, ...] = ("float32", "float16", "int8")
    operator_library: str | None = None
    tensorrt: str | None = None
    tensorrt_versions: str = ""
    on_device: bool = False
    warning: str = ""
    unused_warning: str = ""

    @property
    def runs_on_cpu(self) -> bool:
        """Check whether a bundle's own files can be run on any machine."""
        return self.name in ("cpu", "portable")

    def check(self, precision: str, cache_type: str) -> None:
        """Refuse what the target cannot do.

        Raises:
            NotPossibleHere: it cannot do `precision`, or keep its cache in `cache_type`.
        """
        if precision in PRECISIONS and precision not in self.precisions:
            raise NotPossibleHere(
                f"The target {self.name} has no kernels for {precision}: choose --precision {' or '.join(self.precisions)}."
            )
        if cache_type not in self.cache_types:
            raise NotPossibleHere(
                f"The target {self.name} cannot keep its KV cache in {cache_type}: choose --kv-cache "
                f"{' or '.join(self.cache_types)}."
            )

    def warning_about(self, operator_library: str | None) -> str:
        """Return what to warn of, for a bundle whose graphs need that library."""
        return self.warning if operator_library == self.operator_library else self.unused_warning

    def builds_here(self) -> bool:
        """Check whether this machine builds the engines: for a device's target, whether it is of that kind."""
        if not self.on_device:
            return True
        assert self.device is not None
        return platform.machine() == "aarch64" and compute_capability() == self.device.compute_capability


def _device(name: str, versions: str) -> Target:
    device = devices.ON_DEVICE[name]
    return Target(
        name,
        f"TensorRT on {device.name}, finished there",
        tensorrt_rules.RULES,
        device,
        GPU_PRECISIONS,
        GPU_CACHES,
        PLUGIN_LIBRARY,
        "tensorrt",
        versions,
        on_device=True,
    )


_BUILT_FROM = "DualPathMoE is built from ONNX Runtime's own operators"
_TWICE = "The published model will take about twice the time for decoding and prefill."
_EVERY_EXPERT = (
    "Every expert will run on every token, so that a token reads about a tenth more weights in the published model, and each layer will "
    "have some ninety operators more to launch."
)

_NATIVE = Target("cpu", "ONNX Runtime on a CPU", onnxruntime.NATIVE, devices.CPU, operator_library=OPERATOR_LIBRARY)
_NOT_NATIVE = replace(_NATIVE, rules=onnxruntime.SPELLED_OUT, operator_library=None)
_PORTABLE = Target(
    "portable",
    "ONNX opset 24, standard operators only, for any runtime",
    standard.SPELLED_OUT,
    cache_types=("float32",),
    warning=(
        "DualPathMoE is spelled out in standard operators: every expert runs on every token, about a tenth more arithmetic "
        "than the chosen experts need."
    ),
)
_CUDA = Target(
    "cuda",
    "ONNX Runtime on an NVIDIA GPU",
    onnxruntime_cuda.NATIVE,
    devices.RTX_WORKSTATION,
    ("int4", "int8", "fp16"),
    GPU_CACHES,
    OPERATOR_LIBRARY,
    unused_warning=f"this project's GPU kernels take {TAKEN}, and not these weights, so {_BUILT_FROM}. {_EVERY_EXPERT}",
)
_CUDA_WITHOUT_KERNELS = replace(_CUDA, rules=onnxruntime_cuda.SPELLED_OUT, operator_library=None)
_RTX = Target(
    "rtx",
    "TensorRT-RTX engines for RTX GPUs since Ampere, built on any machine",
    tensorrt_rules.RULES,
    devices.RTX_WORKSTATION,
    GPU_PRECISIONS,
    GPU_CACHES,
    PLUGIN_LIBRARY,
    "tensorrt_rtx",
    "TensorRT-RTX 1.7 from the package index",
)
_JETPACK = "JetPack 7.2"  # JetPack 6 has TensorRT 10.3, and a Python that is too old

TARGETS = {
    target.name: target
    for target in (
        *(_NATIVE, _PORTABLE, _CUDA, _RTX),
        _device("jetson-orin", _JETPACK),
        _device("jetson-orin-nano", _JETPACK),
        _device("jetson-thor", "JetPack 7"),
        _device("igx-orin", "IGX Software with TensorRT 10.3 or later and Python 3.11 or later"),
        _device("dgx-spark", "DGX OS 7"),
    )
}


def target(name: str, spell_out: bool = False, precision: str = "int4") -> Target:
    """Return the target of that name, as this install can build it.

    Args:
        name: the target's.
        spell_out: use ONNX Runtime's own operators alone.
        precision: of the decoder's weights, as `--precision` spells it.

    Raises:
        NotPossibleHere: there is none, or it cannot do without this project's operators.
    """
    if name not in TARGETS:
        raise NotPossibleHere(f"There is no target {name}: choose one of {', '.join(TARGETS)}.")
    chosen = TARGETS[name]
    if spell_out and chosen.tensorrt:
        raise NotPossibleHere(
            f"The target {name} runs DualPathMoE in TensorRT's plugin alone: leave --spell-out away, or choose --target cuda."
        )
    if chosen == _NATIVE:
        return _cpu(spell_out)
    return _cuda(spell_out, precision) if chosen == _CUDA else chosen


def _cpu(spell_out: bool) -> Target:
    if spell_out:
        return replace(_NOT_NATIVE, warning=f"as --spell-out asks, {_BUILT_FROM}. {_TWICE}")
    if library_path():
        return _NATIVE
    return replace(
        _NOT_NATIVE,
        warning=f"this install has no operator library, because there was no C++ compiler, so {_BUILT_FROM}. {_TWICE} Install a C++ "
        "compiler, reinstall echovlm-edge, then build again.",
    )


def _cuda(spell_out: bool, precision: str) -> Target:
    if spell_out:
        return replace(_CUDA_WITHOUT_KERNELS, warning=f"as --spell-out asks, {_BUILT_FROM}. {_EVERY_EXPERT}")
    if has_gpu_kernels() or precision not in GPU_PRECISIONS:
        return _CUDA  # which spells out what the kernels do not take
    return replace(
        _CUDA_WITHOUT_KERNELS,
        warning=f"this install was built without GPU kernels, so {_BUILT_FROM}. {_EVERY_EXPERT} Install triton, then "
        f"{reinstall_hint(gpu_kernels=True)}, then build again.",
    )
