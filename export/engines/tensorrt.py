"""Build TensorRT engines with the module `tensorrt` or `tensorrt_rtx`: parse a part's graph, set its profiles, build, count layers.

Nothing here needs torch: the same builder finishes a bundle on the device.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from echovlm_edge.export.engines.tensorrt_graph import write_graph
from echovlm_edge.export.engines.tensorrt_module import TensorRT
from echovlm_edge.export.engines.timing_cache import TimingCache
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, Limits, Part, TensorSpec, describe_file
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.imaging.preprocess import MAX_ASPECT_RATIO
from echovlm_edge.runtime.prompting.windows import most_windows

ENGINE = ".engine"
MERGED = 4  # patches of one visual token
DRAFTED = 8  # tokens of each sequence in a step, at most
TYPICAL_PATCHES = 1564  # a frame of 640 x 480
STEPS = 1000  # of one engine on the progress bar

Range = tuple[int, int, int]  # smallest, typical, largest


@dataclass(frozen=True)
class Profile:
    """One optimization profile: the range of each varying dimension, by the graph's names for them."""

    name: str
    dimensions: Mapping[str, Range]


@dataclass(frozen=True)
class EngineOptions:
    """What a bundle's engines are built for: its limits, and the patches of the largest image it takes."""

    limits: Limits
    max_patches: int
    timing_cache: TimingCache = field(default_factory=TimingCache)

    @classmethod
    def of(cls, limits: Limits, max_pixels: int, patch_size: int) -> EngineOptions:
        """Make the options for a bundle: an image takes at most `max_pixels`, and no more visual tokens than the context holds."""
        return cls(limits, min(max_pixels // patch_size**2, MERGED * limits.max_sequence))

    def profiles(self, part: str, graph: onnx.GraphProto) -> tuple[Profile, ...]:
        """Return a part's optimization profiles, in the engine's order."""
        if part == "decoder":
            # TensorRT-RTX 1.7 fails where the sequence varies and the batch does not ("more than one op named mask.1_iota").
            batch = max(2, self.limits.max_batch)
            return (
                # Mostly a token of each sequence; a few of each where drafts are verified.
                Profile(
                    "decode", {"batch": (1, 1, batch), "sequence": (1, 1, DRAFTED), "rows": (1, 1, batch * DRAFTED)}
                ),
                Profile(
                    "prefill", {"batch": (1, 1, 1), "sequence": (1, PREFILL_CHUNK, PREFILL_CHUNK), "rows": (1, 1, 1)}
                ),
            )
        patches = (MERGED, min(TYPICAL_PATCHES, self.max_patches), self.max_patches)
        sizes = {name: patches for value in graph.input for name in _varying(value)}
        for value in graph.input:
            if value.name == "window_rows":
                sizes["windows"] = _windows(patches, value.type.tensor_type.shape.dim[1].dim_value)
        return (Profile("image", sizes),)


def _windows(patches: Range, whole: int) -> Range:
    """Return the windows of `whole` patches in images of so many patches, the typical one of 4 to 3, the largest of any shape."""
    merge, window = math.isqrt(MERGED), math.isqrt(whole // MERGED)
    _, typical, largest = patches
    return 1, most_windows(typical, merge, window, 2), most_windows(largest, merge, window, MAX_ASPECT_RATIO)


def build_engine(
    trt: TensorRT, folder: Path, part: Part, options: EngineOptions, advance: Callable[[int], None] = lambda steps: None
) -> Part:
    """Build `folder/<part>.engine` from a part's portable graph in the same folder; the graph's files stay.

    Args:
        trt: the opened module.
        folder: the bundle's.
        part: as `write_part` left it: `files[0]` is the graph.
        options: what the engine is built for.
        advance: called with the progress, `STEPS` in total.

    Returns:
        The part with the engine as its one file, the engine's own inputs and outputs, its profiles and its layers.

    Raises:
        NotPossibleHere: TensorRT refuses the graph or the machine; the sentence has its reason.
    """
    prepared = folder / f"{part.name}.tensorrt.onnx"
    try:
        graph = write_graph(folder / part.files[0].name, prepared, options.limits.max_sequence, trt.release()).graph
        profiles = options.profiles(part.name, graph)
        layers = _build(trt, prepared, folder / f"{part.name}{ENGINE}", graph, profiles, options.timing_cache, advance)
    finally:
        prepared.unlink(missing_ok=True)
    return Part(
        name=part.name,
        precision=part.precision,
        files=(describe_file(folder, f"{part.name}{ENGINE}"),),
        inputs=tuple(map(_describe, graph.input)),
        outputs=tuple(map(_describe, graph.output)),
        operators=part.operators,
        layers=layers,
        profiles=tuple(profile.name for profile in profiles),
    )


def replace_by_engines(
    trt: TensorRT, folder: Path, parts: Sequence[Part], options: EngineOptions, advance: Callable[[int], None]
) -> list[Part]:
    """Build every part's engine in a bundle's folder, each in the place of its graph, whose files are removed.

    `advance` is called with the progress, `STEPS` per part; raises what `build_engine` raises.
    """
    built = []
    for part in parts:
        built.append(build_engine(trt, folder, part, options, advance))
        for file in part.files:
            (folder / file.name).unlink()
    return built


def _build(
    trt: TensorRT,
    source: Path,
    engine: Path,
    graph: onnx.GraphProto,
    profiles: tuple[Profile, ...],
    timing_cache: TimingCache,
    advance: Callable[[int], None],
) -> dict[str, int]:
    """Parse and build; returns how many layers of each type the parser made."""
    api = trt.api
    trt.errors.messages.clear()
    builder = api.Builder(trt.logger)
    network = builder.create_network(_strongly_typed(api))
    parser = api.OnnxParser(network, trt.logger)
    if not parser.parse_from_file(str(source)):
        reasons = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise NotPossibleHere(_refusal(trt, engine, reasons))
    layers = Counter(network.get_layer(index).type.name for index in range(network.num_layers))
    config = builder.create_builder_config()
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # so that the device's profiler names the layers
    for profile in profiles:
        config.add_optimization_profile(_optimization_profile(builder, network, graph, profile))
    timing_cache.load(trt, config)
    bar = _progress_bar(api, advance)
    config.progress_monitor = bar
    plan = builder.build_serialized_network(network, config)
    if bar.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise NotPossibleHere(_refusal(trt, engine, list(trt.errors.messages)))
    timing_cache.save(trt, config)
    bar.finish()
    with engine.open("wb") as file:
        file.write(plan)
    return dict(sorted(layers.items()))


def _strongly_typed(api: Any) -> int:
    """Return the network flags for a graph that states every type; from TensorRT 11 on, networks are strongly typed by default."""
    flag = getattr(api.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _optimization_profile(builder: Any, network: Any, graph: onnx.GraphProto, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for value in graph.input:
        if _varying(value):
            sizes = [
                tuple(
                    profile.dimensions[dimension.dim_param][kind] if dimension.dim_param else dimension.dim_value
                    for dimension in value.type.tensor_type.shape.dim
                )
                for kind in range(3)
            ]
            made.set_shape(value.name, *sizes)
    return made


def _varying(value: onnx.ValueInfoProto) -> list[str]:
    return [dimension.dim_param for dimension in value.type.tensor_type.shape.dim if dimension.dim_param]


def _describe(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(dimension.dim_param or dimension.dim_value for dimension in tensor.shape.dim)
    return TensorSpec(value.name, onnx.TensorProto.DataType.Name(tensor.elem_type).lower(), shape)


def _refusal(trt: TensorRT, engine: Path, reasons: Sequence[str]) -> str:
    # Without a driver every error is followed by one of CUDA's, which is not the reason.
    lines = [line for line in "\n".join(reasons[:2]).splitlines() if line.strip() and "cudaError" not in line]
    return (
        f"{trt.name} {trt.version} cannot build {engine.name} ({lines[-1] if lines else 'it does not say why'}): install "
        "constraints.txt's versions, or build for another --target."
    )


def _progress_bar(api: Any, advance: Callable[[int], None]) -> Any:
    class ProgressBar(api.IProgressMonitor):
        """Shows the outermost phase of a build; ends the build on an interrupt, since no exception may cross TensorRT."""

        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._outer: tuple[str, int] | None = None
            self._shown = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None and self._outer is None:
                self._outer = phase_name, max(1, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if self._outer and phase_name == self._outer[0]:
                    self._show(STEPS * (step + 1) // self._outer[1])
            except KeyboardInterrupt:
                self.interrupted = True
            return not self.interrupted

        def finish(self) -> None:
            self._show(STEPS)

        def _show(self, reached: int) -> None:
            advance(max(0, min(STEPS, reached) - self._shown))
            self._shown = max(self._shown, min(STEPS, reached))

    return ProgressBar()
