"""Stage `published`: the published size with random weights: first tokens, steps of sequences and of drafts, and where time goes."""

from __future__ import annotations

import gc
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.gpu_check.bandwidth import measured_bandwidth
from benchmarks.gpu_check.figures import Decoding, DraftedStep, FirstToken, OperatorTime, PublishedFigures
from benchmarks.gpu_check.gpu_kernels import kernel_times
from benchmarks.gpu_check.greedy import Batch, Given
from benchmarks.gpu_check.setting import BUNDLES, GOLDEN, Setting
from echovlm_edge.runtime.backends import Backend, SlotMemory
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.backends.operator_times import NodeTime, ProfiledBackend
from echovlm_edge.runtime.bundle.cost_model import CostModel
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.bundle.token_embedding import TokenEmbedding
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.engine.scheduling.row_times import measure_rows
from echovlm_edge.runtime.profiling.measurement.measurer import InProcess, Measurer
from echovlm_edge.runtime.profiling.measurement.memory import gpu_memory
from echovlm_edge.runtime.profiling.measurement.operators import joined
from echovlm_edge.runtime.profiling.workloads import Workload
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary
from echovlm_edge.runtime.resources.nvml import Nvml, open_nvml

PRECISION = "int4"
WARM_UPS = 3  # steps
TIMED = 4  # steps, and prompts, whose operators are timed
DRAFTED_ROWS = 1, 2, 4, 8  # a TensorRT engine takes no more of one sequence in a step
LARGEST = 12  # names of operators and kernels that are kept


def run(setting: Setting, keep: Callable[[PublishedFigures], None]) -> None:
    """Make the bundle, load it and measure; keep what there is after each measurement.

    Raises:
        NotPossibleHere: there is no GPU, no package for one, or too little memory or disk.
    """
    sizes, device = setting.sizes, CudaDevice()
    bundle, made = random_one(setting)
    options = EngineOptions(slots=max(sizes.sequences), ignore_stop=True)
    started = time.perf_counter()
    backend = open_backend(bundle, memory=options.slot_memory(bundle.manifest, None))
    loaded, used = time.perf_counter() - started, gpu_memory()
    found = PublishedFigures(
        layers=bundle.manifest.model.num_layers,
        precision=bundle.manifest.precision,
        operator=bundle.manifest.operator_library is not None,
        bundle_gb=sum(file.bytes for file in bundle.manifest.all_files()) / 1e9,
        made_seconds=made,
        load_seconds=loaded,
        gpu_gb=used() / 1e9 if used else None,
        bandwidth=measured_bandwidth(device, sizes.bandwidth_bytes),
    )
    keep(found)
    nvml, costs = open_nvml(), cost_model(bundle)
    for sequences in sizes.sequences:
        steps = decoding(setting, backend, bundle, sequences, costs, nvml)
        found = replace(found, decoding=(*found.decoding, steps))
        keep(found)
    found = replace(found, drafted=drafted_steps(setting, backend, bundle))
    keep(found)
    engine = ReportEngine(bundle, backend, options=options)  # last: from here on its thread has the decoder's stream
    for workload in sizes.workloads:
        found = replace(found, first_tokens=(*found.first_tokens, first_token(engine, workload, sizes.runs)))
        keep(found)
    engine.close()
    del engine, backend
    gc.collect()  # the weights, before they are loaded again
    for times in decoder_times(setting, bundle):
        found = replace(found, operators=(*found.operators, *times))
        keep(found)


def random_one(setting: Setting) -> tuple[Bundle, float | None]:
    """Open the bundle of random weights; writes it, in so many seconds, if it is not there."""
    path = setting.folder / BUNDLES / ("random-small" if setting.rehearsal else "random")
    if (path / MANIFEST).is_file():
        return Bundle(path), None
    from benchmarks.random_bundle import random_bundle
    from echovlm_edge.export.build_options import BuildOptions

    for unfinished in path.parent.glob(f".{path.name}.*"):
        shutil.rmtree(unfinished)
    options = BuildOptions(Path("random"), path, "cuda", PRECISION, name="random")
    started = time.perf_counter()
    random_bundle(options, setting.config, GOLDEN if setting.rehearsal else None, Console(quiet=True))
    return Bundle(path), time.perf_counter() - started


def cost_model(bundle: Bundle) -> CostModel:
    """Return what counts the bytes that a step reads."""
    costs = CostModel.of(bundle.manifest)
    assert costs is not None, "a random bundle has its config"
    return costs


def first_token(engine: ReportEngine, workload: Workload, runs: int) -> FirstToken:
    """Ask for one token, several times; every frame is new."""
    measured = Measurer(InProcess(engine), runs, warmups=1).measure(replace(workload, new_tokens=1))
    requests = [request.run for request in measured.requests]
    stages = {stage for run in requests for stage in run.stages}
    return FirstToken(
        workload.name,
        requests[0].image_tokens,
        requests[0].prompt_tokens,
        statistics.median(run.first_token or 0.0 for run in requests),
        {stage: statistics.median(run.stage_seconds(stage) for run in requests) for stage in sorted(stages)},
    )


def decoding(
    setting: Setting, backend: Backend, bundle: Bundle, sequences: int, costs: CostModel, nvml: Nvml | None
) -> Decoding:
    """Time steps of some sequences, until there are enough of them and enough seconds for the counter of energy."""
    sizes = setting.sizes
    batch, tokens = filled_batch(backend, bundle, sequences, sizes.cached, setting.context)
    taken: list[float] = []
    before = energy(nvml)
    started = time.perf_counter()
    most = setting.context - sizes.cached - WARM_UPS - 1
    while len(taken) < most and (
        len(taken) < sizes.decode_steps or time.perf_counter() - started < sizes.decode_seconds
    ):
        began = time.perf_counter()
        tokens = [int(row.argmax()) for row in batch.step(tokens)]
        taken.append(time.perf_counter() - began)
    seconds, after = time.perf_counter() - started, energy(nvml)
    middle = batch.filled[0] - len(taken) // 2
    return Decoding(
        sequences,
        middle,
        len(taken),
        statistics.median(taken),
        costs.decoder_pass(sequences, 0).read_bytes + sequences * middle * costs.storage.cache_token,
        None if before is None or after is None else (after - before) / seconds,
    )


def drafted_steps(setting: Setting, backend: Backend, bundle: Bundle) -> tuple[DraftedStep, ...]:
    """Time the steps of one sequence that verify drafts, as the engine does at its start."""
    spec, slots = bundle.manifest.model, backend.new_slots(SlotMemory(1, setting.context))
    cost = measure_rows(backend, MultimodalRotary(spec.mrope_section, spec.rope_theta), slots, closed=lambda: False)
    return tuple(DraftedStep(rows, cost(rows)) for rows in DRAFTED_ROWS)


def filled_batch(
    backend: Backend, bundle: Bundle, sequences: int, cached: int, context: int
) -> tuple[Batch, list[int]]:
    """Make sequences of `cached` random tokens each, warmed up; returns their next tokens too."""
    slots = backend.new_slots(SlotMemory(sequences, context))
    batch = Batch(backend, bundle, slots)
    logits: Sequence[object] = batch.read([random_text(bundle, cached, seed) for seed in range(sequences)])
    tokens = [int(np.argmax(row)) for row in logits]  # type: ignore[call-overload]
    for _ in range(WARM_UPS):
        tokens = [int(row.argmax()) for row in batch.step(tokens)]
    return batch, tokens


def random_text(bundle: Bundle, count: int, seed: int) -> Given:
    """Embed random tokens."""
    tokens = np.random.default_rng(seed).integers(0, bundle.manifest.model.vocab_size, count)
    return Given(TokenEmbedding.of(bundle)[tokens], np.tile(np.arange(count), (3, 1)), count)


def energy(nvml: Nvml | None) -> float | None:
    """Return the first GPU's joules since some moment in the past, if it counts them."""
    return next(iter(nvml.joules().values()), None) if nvml else None


def decoder_times(setting: Setting, bundle: Bundle) -> Iterator[list[OperatorTime]]:
    """Time a decoder call's parts, by a backend of its own that measures them: its operators on the host, then the GPU's kernels."""
    backend = open_backend(bundle, memory=SlotMemory(1, setting.context), profile=True)
    chunk, step = calls(setting, backend, bundle)
    for call in (chunk, step):
        for _ in range(1 + TIMED):  # the first warms up
            call()
    assert isinstance(backend, ProfiledBackend)
    runs = backend.operator_times()["decoder"][-2 * (1 + TIMED) :]
    yield [*operators(runs[1 : 1 + TIMED]), *operators(runs[-TIMED:])]
    yield [*kernels("prefill", chunk), *kernels("decode", step)]


def operators(runs: Sequence[Sequence[NodeTime]]) -> Iterator[OperatorTime]:
    """Add up ONNX Runtime's times by kind of operator; the largest."""
    totals: dict[tuple[str, str], tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for operator in joined({"decoder": runs}):
        count, seconds = totals[operator.phase, operator.kind]
        totals[operator.phase, operator.kind] = (count + operator.calls, seconds + operator.seconds)
    for (phase, kind), (count, seconds) in sorted(totals.items(), key=lambda item: -item[1][1])[:LARGEST]:
        yield OperatorTime(phase, kind, count / len(runs), seconds / len(runs) * 1e3, "host")


def kernels(phase: str, call: Callable[[], object]) -> Iterator[OperatorTime]:
    """Time the kernels of a call on the GPU; the largest, and none where there is no PyTorch that can."""
    times = kernel_times(lambda: [call() for _ in range(TIMED)])
    for name, (count, seconds) in sorted(times.items(), key=lambda item: -item[1][1])[:LARGEST]:
        yield OperatorTime(phase, name, count / TIMED, seconds / TIMED * 1e3, "GPU")


def calls(setting: Setting, backend: Backend, bundle: Bundle) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a chunk of a prompt, and a step of one sequence, to be called again and again."""
    slots = backend.new_slots(SlotMemory(1, setting.context))
    prompt = random_text(bundle, setting.sizes.chunk, 0)
    reading, writing = Batch(backend, bundle, slots), Batch(backend, bundle, slots)
    writing.read([prompt])
    return lambda: reading.read([prompt]), lambda: int(writing.step([0])[0].argmax())
