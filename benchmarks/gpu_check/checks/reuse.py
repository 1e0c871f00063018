"""Stage `reuse`: what was read ahead is not read again, and the text is that of an engine that keeps nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.gpu_check.figures import ReuseCase, ReuseFigures
from benchmarks.gpu_check.setting import DEMO, GOLDEN, Setting
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.request import Finished, Frame, GenerationRequest, Sampling
from echovlm_edge.runtime.contracts.tasks import Language, Task, prompt_for
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.profiling.measurement.requests import frame

FRAMES, SIDE = 3, 168  # of the study: 36 tokens each
QUESTION = "Which side is it on?"
KEPT = 64 << 20


def run(setting: Setting, keep: Callable[[ReuseFigures], None]) -> None:
    """Read a study ahead, ask for a report, then a question; each also of an engine that reuses nothing.

    Raises:
        NotPossibleHere: there is no GPU, or no package for one.
    """
    found: list[ReuseCase] = []
    precision, spell_out = setting.sizes.demo[0]
    bundles = {
        "golden fp16": setting.bundle(GOLDEN, "fp16"),
        f"demo {precision}": setting.bundle(DEMO, precision, spell_out),
    }
    for name, bundle in bundles.items():
        for case in _cases(bundle, name, setting):
            found.append(case)
            keep(ReuseFigures(tuple(found)))


def _cases(bundle: Bundle, name: str, setting: Setting) -> Iterator[ReuseCase]:
    report = prompt_for(Task.REPORT, "", FRAMES, Language.EN, None)
    asked = {"a report, after a study that was read ahead": report, "a question, after the report": QUESTION}
    cold = ReportEngine.open(bundle.path, options=EngineOptions(1, 0, 0, ignore_stop=True))
    engine = ReportEngine.open(bundle.path, options=EngineOptions(2, KEPT, KEPT, ignore_stop=True))
    try:
        steps = setting.sizes.token_steps
        frames = tuple(read for number in range(FRAMES) for read in engine.read_image(frame(number, SIDE, SIDE)))
        _ask(cold, "Warm up.", frames, steps)
        expected = [_ask(cold, text, frames, steps) for text in asked.values()]
        engine.prepare(frames, "", "", lambda: False)
        for (what, text), without in zip(asked.items(), expected, strict=True):
            yield _case(name, what, _ask(engine, text, frames, steps), without, _text_tokens(engine, text, frames))
    finally:
        engine.close()
        cold.close()


def _ask(engine: ReportEngine, text: str, frames: tuple[Frame, ...], steps: int) -> Finished:
    *_, last = engine.generate(GenerationRequest(text, sampling=Sampling(max_new_tokens=steps), frames=frames))
    assert isinstance(last, Finished)
    return last


def _text_tokens(engine: ReportEngine, text: str, frames: tuple[Frame, ...]) -> int:
    """Count the prompt's tokens after its last image."""
    unit = engine.settings.resolution.unit // 2  # a patch's side
    grids = [(1, read.pixels.shape[0] // unit, read.pixels.shape[1] // unit) for read in frames]
    prompt = engine.prompts.build(text, grids)
    return len(prompt.token_ids) - int(prompt.image_rows[-1]) - 1


def _case(bundle: str, what: str, ours: Finished, cold: Finished, text_tokens: int) -> ReuseCase:
    pairs = enumerate(zip(ours.token_ids, cold.token_ids, strict=True))
    differs = next((step for step, (one, other) in pairs if one != other), None)
    return ReuseCase(
        bundle,
        what,
        ours.prompt_tokens,
        text_tokens,
        ours.prompt_tokens - ours.reused_tokens,
        ours.first_token_seconds or 0.0,
        cold.first_token_seconds or 0.0,
        differs,
    )
