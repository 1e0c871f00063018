"""A rehearsal of the check: every stage that works on a GPU, with ONNX Runtime's CPU provider in the CUDA provider's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from benchmarks.gpu_check import one_stage
from benchmarks.gpu_check.checks import eager
from benchmarks.gpu_check.exact_reference import exact_reference
from benchmarks.gpu_check.figures import FIGURES, EagerFigures, Results
from benchmarks.gpu_check.setting import BUNDLES, DEMO, Setting
from benchmarks.gpu_check.stages import STAGES, run_stage
from demo.corpus import write_report
from demo.simulate import draw_truth
from echovlm_edge.export import targets
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.backends.gpu import cuda_driver, onnxruntime_engine
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles
from tests.support import stand_in_gpu

IN_PROCESS = ("tokens", "reuse", "published")


@pytest.fixture(scope="module")
def demo(build_bundle: Callable[..., Path]) -> Path:
    return build_bundle(DEMO, target="cuda", precision="int4", spell_out=True)


@pytest.fixture(scope="module")
def stand_in() -> Iterator[None]:
    """A GPU of numpy in this process, as a rehearsal has it in a process of its own, until the module's end."""
    changed = {
        cuda_driver: ("_driver",),
        onnxruntime_engine: ("providers_on", "WHERE", "has_gpu_kernels"),
        ort: ("get_available_providers",),
        targets: ("has_gpu_kernels",),
    }
    with pytest.MonkeyPatch.context() as patch:
        for module, names in changed.items():
            for name in names:
                patch.setattr(module, name, getattr(module, name))  # what stands there comes back
        patch.setattr(stand_in_gpu, "installed", [])
        stand_in_gpu.install("cuda")
        stand_in_gpu.install_kernels()
        yield


@pytest.fixture(scope="module")
def results(
    demo: Path, build_bundle: Callable[..., Path], stand_in: None, tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """Every stage once, on the session's bundles."""
    setting = Setting(tmp_path_factory.mktemp("check"), rehearsal=True)
    bundles = setting.folder / BUNDLES
    bundles.mkdir()
    (bundles / "demo-int4-spelled-out").symlink_to(demo)
    (bundles / "golden-fp16").symlink_to(build_bundle(target="cuda", precision="fp16"))
    stages = {stage.name: stage for stage in STAGES}
    found = run_stage(stages["machine"], setting, Results(rehearsal=True), 300)
    assert found.stages[-1].state == "done", found.stages[-1].reason
    for name in IN_PROCESS:
        part = one_stage.run(replace(stages[name], stand_in=False), setting)
        assert part.state == "done", part.reason
        found = replace(found, **{name: TypeAdapter(FIGURES[name]).validate_python(part.figures)})
    return found


def test_the_machine(results: Results) -> None:
    assert results.machine and results.machine.gpu == "numpy" and results.machine.sm == 87
    assert results.machine.bandwidth and results.machine.bandwidth.copy_gbps > 0
    assert "onnxruntime" in results.machine.packages


def test_tokens_are_the_references_alone_and_in_batches(results: Results) -> None:
    assert results.tokens
    cases = results.tokens.cases
    assert [(case.bundle, case.batch) for case in cases] == [
        (bundle, batch) for bundle in ("golden fp16", "demo int4") for batch in (1, 8)
    ]
    for case in cases:
        assert case.good and not case.divergences and case.tokens > 0, case
        assert 0 < case.largest_error < 0.01 * case.largest_logit, "16 bits round, and no more"


def test_reuse_computes_the_text_alone(results: Results) -> None:
    assert results.reuse and len(results.reuse.cases) == 4
    for case in results.reuse.cases:
        assert case.good, case
        assert case.prefilled_tokens < case.prompt_tokens / 2


def test_the_published_size(results: Results) -> None:
    found = results.published
    assert found and found.layers == 2 and found.precision == "int4" and found.made_seconds and found.bandwidth
    assert [(row.sequences, row.steps) for row in found.decoding] == [(1, 3), (4, 3)]
    one, four = found.decoding
    assert [step.rows for step in found.drafted] == [1, 2, 4, 8] and all(step.seconds > 0 for step in found.drafted)
    assert four.read_bytes > one.read_bytes > 1e6 and one.watts is None
    (first,) = found.first_tokens
    assert first.image_tokens == 9 and first.seconds > 0 and {"vision", "prefill"} <= set(first.stages)
    phases = {(row.phase, row.clock) for row in found.operators}
    assert phases == {("prefill", "host"), ("decode", "host")}
    names = {row.name: row.calls for row in found.operators}
    assert found.operator and names["DualPathMoE"] == found.layers, "the operator, in the GPU's place the CPU's"


def test_the_reference_has_the_bundles_own_weights(demo: Path) -> None:
    """As exact as 16 bits are; with weights rounded in other blocks, the error is fifty times as large."""
    bundle = Bundle(demo)
    spec, candidate = bundle.manifest.model, OnnxRuntimeBackend(bundle)
    reference = exact_reference(Checkpoint(DEMO), bundle.manifest)
    patches = np.random.default_rng(0).standard_normal((64, 1176), np.float32)
    angles = vision_angles((1, 8, 8), spec.merge_size, spec.vision_head_dim)
    features = reference.encode(patches, angles)
    assert error(candidate.encode(patches, angles), features) < 2e-3
    assert error(candidate.project(features), reference.project(features)) < 2e-3
    report = write_report(draw_truth(np.random.default_rng(0)), Language.EN, np.random.default_rng(0))
    ids = np.array(Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(report).ids)
    tokens, count = candidate.embed(ids), len(ids)
    turns = MultimodalRotary(spec.mrope_section, spec.rope_theta).angles(np.tile(np.arange(count), (3, 1)))
    one, other = (
        np.asarray(backend.decode(tokens, turns, 0, np.arange(count), new_cache(backend, 64)))  # type: ignore[arg-type]
        for backend in (candidate, reference)
    )
    assert error(one, other) < 2e-3


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_pytorch_eager(tmp_path: Path) -> None:
    kept: list[EagerFigures] = []
    eager.run(Setting(tmp_path, rehearsal=True), kept.append)
    last = kept[-1]
    assert (last.torch, last.layers, last.few_layers, last.prefill_tokens) == (torch.__version__, 2, 1, 69)
    assert [step.sequences for step in last.steps] == [1, 4]
    assert last.few_seconds and last.compiled_seconds is None and last.compiled_reason
    assert len(kept) == 5, "each figure is kept when it is there"
