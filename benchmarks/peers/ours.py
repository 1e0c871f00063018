"""Our own bundle: `echovlm-build` to int4, served by the engine that every door of the service uses."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.environments import run
from benchmarks.peers.peer import Answer, Question, Task

DEFAULT_BLOCK = 128
BUNDLE = "bundle"  # the default's folder


@dataclass
class Ours:
    """An int4 bundle for the CPU.

    Attributes:
        block: weights that share a scale: 128, 64 or 32.
    """

    block: int = DEFAULT_BLOCK
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"EchoVLM Edge int4/{self.block}"

    @property
    def python(self) -> str:
        """Return this environment's interpreter."""
        return sys.executable

    def prepare(self, folder: Path) -> None:
        """Build the bundle; raises CannotTakePart when that fails."""
        target = self._bundle(folder)
        if not target.is_dir():
            script = str(Path(sys.executable).with_name("echovlm-build"))
            source = (script, "--checkpoint", str(folder / "checkpoint"), "--output", str(target))
            build = (*source, "--precision", "int4", "--block-size", str(self.block))
            run(f"{self.name}: building (minutes)", build, target.with_suffix(".log"))

    def versions(self) -> Mapping[str, str]:
        """Return our version, ONNX Runtime's, and the kernels that this processor gets."""
        from echovlm_edge.runtime.profiling.measurement.machine import kernels, package_version

        found = {name: package_version(name) or "" for name in ("echovlm-edge", "onnxruntime")}
        return {**found, "kernels": kernels() or "none"}

    def load(self, task: Task) -> None:
        """Open the engine with one slot and no caches, so that nothing is computed ahead or kept."""
        from echovlm_edge.runtime.engine.engine_options import EngineOptions
        from echovlm_edge.runtime.engine.report_engine import ReportEngine

        options = EngineOptions(1, 0, 0, ignore_stop=True, drafting=False)
        opened = ReportEngine.open(
            Path(task.folder) / BUNDLE, threads=task.threads, max_sequence=task.context, options=options
        )
        self._loaded["engine"] = opened

    def ask(self, question: Question, new_tokens: int) -> Answer:
        """Answer greedily."""
        from echovlm_edge.runtime.contracts.request import Finished, Frame, GenerationRequest, Sampling, Stage

        engine = self._loaded["engine"]
        frame = Frame(question.pixels(), question.name, engine.settings.resolution)
        started = time.perf_counter()
        request = GenerationRequest(question.text, sampling=Sampling(max_new_tokens=new_tokens), frames=(frame,))
        *_, last = engine.generate(request)
        seconds = time.perf_counter() - started
        assert isinstance(last, Finished) and last.first_token_seconds is not None
        vision = last.seconds[Stage.VISION] + last.seconds[Stage.PROJECTOR]
        first = last.first_token_seconds
        return Answer(last.image_tokens, last.prompt_tokens, vision, first, seconds - first, len(last.token_ids))

    def logits(self, task: Task) -> NDArray[np.float32]:
        """Compute logits in the calls that the engine makes: the prompt in chunks, then a token at a time."""
        from benchmarks.peers.forced_logits import by_bundle
        from echovlm_edge.runtime.bundle.manifest import Bundle

        return by_bundle(Bundle(self._bundle(Path(task.folder))), task.questions[0], task.forced, task.threads)

    def _bundle(self, folder: Path) -> Path:
        return folder / (BUNDLE if self.block == DEFAULT_BLOCK else f"{BUNDLE}-{self.block}")
