"""Fixtures that many tests share: golden cases and the bundles built from them, once a run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings

from benchmarks import served
from benchmarks.served import script
from echovlm_edge.runtime.bundle.golden_tokens import GOLDEN_TOKENS
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support import golden
from tests.support.stand_in_gpu import BACKENDS, BATCH, install, write_command
from tests.support.tensorrt_bundles import tensorrt_like
from tests.support.watched_engine import MakeEngine, WatchedBackend

settings.register_profile("house", deadline=None)  # a test of speed is a benchmark
settings.load_profile("house")

BuildBundle = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_traces() -> Iterator[None]:
    """Builds in this process trace each shape of model once."""
    from echovlm_edge.export import build_engines
    from tests.support.traces import shared_parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_engines, "traced_parts", shared_parts)
        yield


@pytest.fixture(scope="session")
def build_bundle(shared_traces: None, tmp_path_factory: pytest.TempPathFactory) -> BuildBundle:
    """Builds a bundle from a checkpoint with the given options, once for each combination."""
    from rich.console import Console

    from echovlm_edge.export.build_engines import BuildOptions, build

    built: dict[tuple[object, ...], Path] = {}

    def bundle(checkpoint: Path = golden.CHECKPOINT, **options: object) -> Path:
        key = (checkpoint, *sorted(options.items()))
        if key not in built:
            output = tmp_path_factory.mktemp("bundles") / "bundle"
            build(BuildOptions(checkpoint, output, **{"precision": "fp32", **options}), Console(quiet=True))  # type: ignore[arg-type]
            built[key] = output
        return built[key]

    return bundle


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend", choices=BACKENDS, default="cpu", help="what serves the golden bundle; a GPU is one of numpy"
    )


@pytest.fixture(scope="session")
def golden_bundle(
    build_bundle: BuildBundle, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """The golden checkpoint's bundle: float32 for the CPU, or what `--backend` serves."""
    backend = request.config.getoption("--backend")
    if backend == "cpu":
        return build_bundle()
    install(backend)
    command = write_command(tmp_path_factory.mktemp("command") / "echovlm-serve")
    served.script = lambda name: command if name == "echovlm-serve" else script(name)
    if backend == "cuda":
        return build_bundle(target="cuda", precision="fp16")
    folder = tmp_path_factory.mktemp("tensorrt") / "bundle"
    return tensorrt_like(build_bundle(target="portable"), folder, batch=BATCH).path


@pytest.fixture
def brief_bundle(golden_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to whose model every token is the end of its text."""
    bundle = Path(shutil.copytree(golden_bundle, tmp_path / "brief"))
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["model"]["stop_token_ids"] = list(range(manifest["model"]["vocab_size"]))
    manifest["files"] = [file for file in manifest["files"] if file["name"] != GOLDEN_TOKENS]  # it writes none of them
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return bundle


@pytest.fixture
def make_engine(golden_bundle: Path) -> Iterator[MakeEngine]:
    """Opens engines over a `WatchedBackend`, and closes them; each token is a step of its own, unless `drafting` is asked for."""
    engines = []

    def make(
        options: EngineOptions | None = None, path: Path = golden_bundle, drafting: bool = False
    ) -> tuple[ReportEngine, WatchedBackend]:
        bundle, options = Bundle(path), replace(options or EngineOptions(), drafting=drafting)
        backend = WatchedBackend(bundle, options.slot_memory(bundle.manifest, None))
        engine = ReportEngine(bundle, backend, options=options)
        engines.append(engine)
        return engine, backend

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(params=golden.CASES)
def case(request: pytest.FixtureRequest) -> golden.Golden:
    """Each golden case in turn."""
    return golden.load(request.param)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of other shapes: 7 experts top 3, renormalised, tied embeddings, other head counts and widths."""
    from benchmarks.make_checkpoint import config_like_published, make_checkpoint

    config = config_like_published(
        width=160,
        layers=2,
        vision_width=80,
        vision_depth=2,
        hidden_size=160,
        num_attention_heads=10,
        num_key_value_heads=5,
        rope_scaling={"mrope_section": [2, 3, 3], "type": "default"},
        num_experts=7,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        intermediate_size=288,
        shared_expert_intermediate_size=96,
        moe_intermediate_size=64,
        rope_theta=5e5,
        vision_config={"depth": 2, "embed_dim": 80, "hidden_size": 160, "num_heads": 2, "mlp_ratio": 3},
    )
    return make_checkpoint(tmp_path_factory.mktemp("other") / "checkpoint", config, seed=3)
