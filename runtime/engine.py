"""The engine: one loaded bundle that answers one request at a time, from image bytes to streamed text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.backends import Backend, Floats, Logits
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle import Bundle
from echovlm_edge.runtime.detokenize import TokenText
from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.generate import Model, Stopped, decode, prefill, prompt_embeddings
from echovlm_edge.runtime.image import Frame, decode_image
from echovlm_edge.runtime.preprocess import Patches, PreprocessSettings, patchify
from echovlm_edge.runtime.prompt import Prompt, PromptBuilder
from echovlm_edge.runtime.request import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    ImageInput,
    Span,
    Stage,
    StageStarted,
    TextDelta,
)
from echovlm_edge.runtime.rotary import MultimodalRotary, vision_angles

QUEUE_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class EngineInfo:
    """What is loaded: for GetModelInfo and logs."""

    model: str
    checkpoint_sha256: str
    bundle_id: str
    bundle_format: int
    target: str
    precision: str
    max_sequence: int
    max_pixels: int  # of one frame after resizing; larger frames are scaled down


class _Clock:
    """Keeps the spans of one request."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.started = time.perf_counter()

    @contextmanager
    def measure(self, stage: Stage) -> Iterator[None]:
        started = self.elapsed()
        try:
            yield
        finally:
            self.spans.append(Span(stage, started, self.elapsed() - started))

    def just_took(self, stage: Stage, seconds: float) -> None:
        """A span that ends now."""
        self.spans.append(Span(stage, self.elapsed() - seconds, seconds))

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def seconds(self) -> dict[Stage, float]:
        """Wall time by stage."""
        totals: dict[Stage, float] = {}
        for span in self.spans:
            totals[span.stage] = totals.get(span.stage, 0.0) + span.seconds
        return totals


class ReportEngine:
    """A loaded model. Calls may come from many threads; they are served one after another."""

    def __init__(self, bundle: Bundle, backend: Backend, max_sequence: int | None = None) -> None:
        """`max_sequence` lowers the bundle's own limit, and with it the KV cache's memory."""
        manifest = bundle.manifest
        spec = manifest.model
        rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
        self.model = Model(backend, rotary, spec.vocab_size, frozenset(spec.stop_token_ids))
        self.settings = PreprocessSettings.from_config(manifest.preprocess)
        self.prompts = PromptBuilder.from_bundle(bundle)
        self._spec = spec
        self._token_text = TokenText(self.prompts.tokenizer)
        self._cache = backend.new_cache(min(max_sequence or manifest.limits.max_sequence, manifest.limits.max_sequence))
        self._busy = threading.Lock()
        self.info = EngineInfo(
            model=manifest.source.name,
            checkpoint_sha256=manifest.source.sha256,
            bundle_id=manifest.bundle_id,
            bundle_format=manifest.format,
            target=manifest.target,
            precision=manifest.precision,
            max_sequence=self._cache.max_sequence,
            max_pixels=self.settings.max_pixels,
        )

    @classmethod
    def open(
        cls, path: Path, *, threads: int | None = None, max_sequence: int | None = None, verify: bool = False
    ) -> ReportEngine:
        """Load the bundle at `path`; `threads` defaults to one per core.

        Raises:
            NotPossibleHere: no bundle, a damaged one, or one this machine cannot run.
        """
        bundle = Bundle(path, verify)
        return cls(bundle, open_backend(bundle, threads, max_sequence), max_sequence)

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Answer one request as a stream of events that ends with `Finished`.

        `stopped()` is asked before every image, prefill chunk and token; then the stream ends with CANCELLED.

        Raises:
            InvalidInput: an unreadable image, or a prompt longer than the context.
        """
        clock = _Clock()
        if not self._busy.acquire(blocking=False):
            yield StageStarted(Stage.QUEUE)
            with clock.measure(Stage.QUEUE):
                while not self._busy.acquire(timeout=QUEUE_POLL_SECONDS):
                    if stopped():
                        yield _cancelled(clock)
                        return
        try:
            yield from self._generate(request, stopped, clock)
        finally:
            self._busy.release()

    def _generate(self, request: GenerationRequest, stopped: Callable[[], bool], clock: _Clock) -> Iterator[Event]:
        prompt: Prompt | None = None
        try:
            if request.images:
                yield StageStarted(Stage.DECODE_IMAGES)
            patches = [
                self._patches(frame, clock) for image in request.images for frame in _frames(image, stopped, clock)
            ]
            prompt = self.prompts.build(request.prompt, [image.grid for image in patches])
            self._check_length(prompt)
            if patches:
                yield StageStarted(Stage.VISION)
            images = [self._image_embeddings(image, stopped, clock) for image in patches]
            yield StageStarted(Stage.PREFILL)
            with clock.measure(Stage.PREFILL):
                embeddings = prompt_embeddings(self.model.backend, prompt, images)
                logits = prefill(self.model, prompt, embeddings, self._cache, stopped)
        except Stopped:
            yield _cancelled(clock, prompt)
            return
        yield from self._write(prompt, logits, request, stopped, clock)

    def _write(
        self, prompt: Prompt, logits: Logits, request: GenerationRequest, stopped: Callable[[], bool], clock: _Clock
    ) -> Iterator[Event]:
        stream, text, tokens = self._token_text.stream(), [], []
        finish, first_token = FinishReason.CANCELLED, None
        for step in decode(self.model, prompt, logits, self._cache, request.sampling, stopped):
            clock.just_took(Stage.DECODE, step.seconds)
            first_token = first_token or clock.elapsed()
            tokens.append(step.token_id)
            with clock.measure(Stage.DETOKENIZE):
                delta = stream.push(step.token_id)
            if delta:
                text.append(delta)
                yield TextDelta(delta)
            finish = step.finish or finish
        if rest := stream.finish():
            text.append(rest)
            yield TextDelta(rest)
        yield _finished("".join(text), tuple(tokens), finish, prompt, clock, first_token)

    def _patches(self, frame: Frame, clock: _Clock) -> Patches:
        with clock.measure(Stage.PREPROCESS):
            return patchify(frame.pixels, self.settings)

    def _image_embeddings(self, image: Patches, stopped: Callable[[], bool], clock: _Clock) -> Floats:
        if stopped():
            raise Stopped
        angles = vision_angles(image.grid, self._spec.merge_size, self._spec.vision_head_dim)
        with clock.measure(Stage.VISION):
            features = self.model.backend.encode(image.values, angles)
        with clock.measure(Stage.PROJECTOR):
            return self.model.backend.project(features)

    def _check_length(self, prompt: Prompt) -> None:
        length, limit = len(prompt.token_ids), self._cache.max_sequence
        if length >= limit:
            raise InvalidInput(
                f"The prompt takes {length} tokens ({len(prompt.image_rows)} of them for images), the context holds "
                f"{limit}: send fewer or smaller images or a shorter text, or build the bundle with --max-sequence."
            )


def _frames(image: ImageInput, stopped: Callable[[], bool], clock: _Clock) -> list[Frame]:
    if stopped():
        raise Stopped
    with clock.measure(Stage.DECODE_IMAGES):
        return decode_image(image)


def _cancelled(clock: _Clock, prompt: Prompt | None = None) -> Finished:
    return _finished("", (), FinishReason.CANCELLED, prompt, clock, None)


def _finished(
    text: str,
    tokens: tuple[int, ...],
    finish: FinishReason,
    prompt: Prompt | None,
    clock: _Clock,
    first_token: float | None,
) -> Finished:
    lengths = (len(prompt.token_ids), len(prompt.image_rows)) if prompt else (0, 0)
    return Finished(text, tokens, finish, *lengths, clock.seconds(), first_token, tuple(clock.spans))
