"""The engine: answers many concurrent requests with one loaded bundle, from image bytes to streamed text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path

from echovlm_edge.runtime.backends import Backend
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle.calibration_pictures import calibration_pictures
from echovlm_edge.runtime.bundle.golden_tokens import read_golden_tokens
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle, reading
from echovlm_edge.runtime.bundle.signature import PublicKey
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, Stopped, Unavailable, fresh
from echovlm_edge.runtime.contracts.origins import Origin, refuse_mixed
from echovlm_edge.runtime.contracts.printable import is_utf8, printable
from echovlm_edge.runtime.contracts.request import (
    Event,
    FinishReason,
    Frame,
    GenerationRequest,
    ImageInput,
    Priority,
    Stage,
    StageStarted,
    pictures,
)
from echovlm_edge.runtime.contracts.text_form import ChoiceForm
from echovlm_edge.runtime.drafting.bundle_phrases import bundle_phrases
from echovlm_edge.runtime.drafting.guess import Phrases
from echovlm_edge.runtime.drafting.reply_phrases import ReplyPhrases
from echovlm_edge.runtime.engine.answering import answer, finished, next_progress
from echovlm_edge.runtime.engine.caching.reuse import ImageStore, PrefixStore, block_names
from echovlm_edge.runtime.engine.clock import Clock, Untimed
from echovlm_edge.runtime.engine.embeddings import embedded
from echovlm_edge.runtime.engine.encoder import Embedded, Encoder
from echovlm_edge.runtime.engine.engine_info import EngineInfo, EngineStats
from echovlm_edge.runtime.engine.engine_options import DEFAULTS, EngineOptions
from echovlm_edge.runtime.engine.fitting import FittedPrompts
from echovlm_edge.runtime.engine.forms.form_compiler import FormCompiler
from echovlm_edge.runtime.engine.generation import Generation, Left
from echovlm_edge.runtime.engine.model import Model, prompt_embeddings
from echovlm_edge.runtime.engine.scheduling.drafting import Drafting
from echovlm_edge.runtime.engine.scheduling.scheduler import Scheduler
from echovlm_edge.runtime.engine.text.replies import Replies
from echovlm_edge.runtime.engine.text.stop_text import StopText
from echovlm_edge.runtime.engine.text.written_text import WrittenText
from echovlm_edge.runtime.imaging.decoder import IN_PROCESS, NOBODY, Asker, ImageDecoder
from echovlm_edge.runtime.imaging.image_file import Measured
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings
from echovlm_edge.runtime.prompting.detokenize import TokenText
from echovlm_edge.runtime.prompting.prompt import Prompt, PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary


class ReportEngine:
    """A loaded model. Calls may come from many threads; they share the decoder."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        max_sequence: int | None = None,
        options: EngineOptions = DEFAULTS,
        image_decoder: ImageDecoder = IN_PROCESS,
        phrases: Phrases | None = None,
    ) -> None:
        """Start the encoder's and the decoder's threads.

        Args:
            bundle: the model's description and tokenizer.
            backend: runs the bundle's graphs.
            max_sequence: lowers the bundle's own limit in tokens, and with it the KV cache's memory.
            options: slots and cache sizes.
            image_decoder: reads image files.
            phrases: what reports say, for drafts, besides what this engine's own say.

        Raises:
            InvalidInput: `max_sequence`, the slots or `image_tokens` are above the bundle's own limit.
            NotPossibleHere: a GPU has too little memory for the slots.
        """
        manifest = bundle.manifest
        spec = manifest.model
        rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
        stops = () if options.ignore_stop else spec.stop_token_ids
        self.path, self.golden_tokens = bundle.path, read_golden_tokens(bundle)
        self.model = Model(backend, rotary, spec.vocab_size, frozenset(stops))
        self.settings = PreprocessSettings.from_config(manifest.preprocess).bounded(options.image_tokens)
        self.prompts = PromptBuilder.from_bundle(bundle)
        self._token_text = TokenText(self.prompts.tokenizer)
        self._forms = FormCompiler(self.prompts.tokenizer, spec.vocab_size, spec.stop_token_ids)
        self._image_decoder = image_decoder
        self.new_clock: Callable[[], Clock] = Clock
        self._images = ImageStore(options.image_bytes)
        self._prefixes = PrefixStore(options.prefix_bytes, options.spilled_bytes)
        self._replies = Replies()
        slots = backend.new_slots(options.slot_memory(manifest, max_sequence))
        self._encoder = Encoder(backend, self.settings, spec, self._images)
        drafting = Drafting(self.model, ReplyPhrases(options.reply_bytes), phrases) if options.drafting else None
        self._scheduler = Scheduler(
            self.model, backend, slots, self._prefixes, options.parked_bytes, options.turn_seconds, drafting
        )
        self._fitted = FittedPrompts(self.prompts, self.settings, slots[0].max_sequence)
        self.info = EngineInfo(
            model=manifest.source.name,
            checkpoint_sha256=manifest.source.sha256,
            bundle_id=manifest.bundle_id,
            bundle_format=manifest.format,
            target=manifest.target,
            precision=manifest.precision,
            max_sequence=slots[0].max_sequence,
            max_pixels=self.settings.max_pixels,
            calibration_pictures=calibration_pictures(bundle),
            adapter=manifest.source.adapter,
            image_tokens=self.settings.image_tokens,
        )

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        threads: int | None = None,
        max_sequence: int | None = None,
        verify: bool = False,
        signers: Sequence[PublicKey] = (),
        options: EngineOptions = DEFAULTS,
        image_decoder: ImageDecoder = IN_PROCESS,
    ) -> ReportEngine:
        """Load the bundle at `path`; `threads` defaults to `usable_processors`, `verify` and `signers` are those of `Bundle`.

        Raises:
            NotPossibleHere: no bundle, a damaged one, one that none of the signers signed, or one this machine cannot run.
            InvalidInput: `max_sequence` is above the bundle's own limit.
        """
        bundle = Bundle(path, verify, signers=signers)
        if not is_utf8(str(bundle.path)):
            raise NotPossibleHere(
                f"The path {printable(str(bundle.path))} of the bundle is not UTF-8, so that it cannot be loaded: rename its folder."
            )
        memory = options.slot_memory(bundle.manifest, max_sequence)  # before the weights are loaded
        with reading(bundle.path / MANIFEST):  # if intact files contradict the manifest, the error names the manifest
            backend = open_backend(bundle, threads, memory)
            phrases = bundle_phrases(bundle) if options.drafting else None
            return cls(bundle, backend, max_sequence, options, image_decoder, phrases)

    def read_vocabulary(self) -> None:
        """Read what forms need of the vocabulary now instead of with the first form: other threads stand still meanwhile."""
        self._forms.read_vocabulary()

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Answer one request as a stream of events that ends with `Finished`.

        `stopped()` is asked before every image, prefill chunk and token; then the stream ends with CANCELLED.

        Raises:
            InvalidInput: an unreadable image, images that do not belong together, or a prompt longer than the context.
            ImageTokensOutOfRange: an image's bound is above the engine's, or below the model's least.
            NotPossibleHere: an image that this machine cannot decode, or a conversation that the chat template cannot render.
            NotFound: frames that were read for another bundle.
            Unavailable: the engine was closed, or decoding is not possible now.
            UnusableForm: no text has the form, or it is not supported or too complex.
        """
        clock = self.new_clock()
        if request.came is not None:
            clock.came(request.came)
        return _timed_delivery(self._events(request, stopped, clock), clock)

    def _events(
        self, request: GenerationRequest, stopped: Callable[[], bool], clock: Clock
    ) -> Generator[Event, None, None]:
        prompt: Prompt | None = None
        form = self._forms.compile(request.form) if request.form else None  # refused before any image is read
        try:
            turns, asker = request.turns, Asker(request.client, request.priority, stopped)
            files = [image for turn in turns for image in turn.images]
            if files:
                yield StageStarted(Stage.DECODE_IMAGES)
            measured = [[self._measure(image, asker, clock) for image in turn.images] for turn in turns]
            if files:
                read = [frame for turn in turns for frame in turn.frames]
                refuse_mixed(_origins(read, files, [*chain(*measured)]), request.allow_mixed_studies)
            prompt = self._fitted.conversation(request, measured, partial(self._replies.find, request.scope))
            self._fitted.fit_choices(prompt, form)
            clock.lap(Stage.PROMPT)
            frames, places = list[Frame](), count(1)
            for turn, sizes in zip(turns, measured, strict=True):
                frames += turn.frames
                for image, size in zip(turn.images, sizes, strict=True):
                    place = next(places)
                    frames += [replace(frame, image=place) for frame in self._decode(image, size, asker, clock)]
            asked = self._ask_for_embeddings(frames, request, stopped, clock)
            if any(isinstance(image, Future) for image in asked):
                yield StageStarted(Stage.VISION)
            images = embedded(asked, stopped, clock)
        except Stopped:
            yield finished(clock, prompt)
            return
        stop = StopText(request.stop)
        generation = self._generation(prompt, images, request, lambda: stop.reached or stopped())
        if form:
            generation = replace(generation, form=form.begin(), choices=form.choices)
        clock.lap(Stage.PROMPT)
        self._scheduler.submit(generation)
        choices = request.form.texts if isinstance(request.form, ChoiceForm) else ()
        shown, text = pictures(frames), WrittenText(self._token_text, stop)  # while the prompt is read
        ending = yield from answer(generation, clock, text, stop, choices)
        if not stop.reached:  # otherwise the tokens are not those of the text
            self._remember(generation, text.text, text.tokens, ending.finish)
        last = finished(clock, prompt, ending, text.text, tuple(text.tokens))
        yield replace(last, pictures=shown, probabilities=tuple(text.probabilities))

    def prepare(self, frames: Sequence[Frame], client: str, scope: str, stopped: Callable[[], bool]) -> None:
        """Encode and prefill frames in the background, below the priority of all requests, so that a later request reuses it.

        Returns when this is done or `stopped()` returns True; raises what `generate` raises.
        """
        request = GenerationRequest("", priority=Priority.BACKGROUND, client=client, scope=scope)
        clock = Untimed()
        try:
            prompt = self._fitted.about(frames)
            images = embedded(self._ask_for_embeddings(frames, request, stopped, clock), stopped, clock)
            generation = self._generation(prompt, images, request, stopped, prefill_only=True)
            self._scheduler.submit(generation)
            ended = False
            while not ended:
                for progress in next_progress(generation, clock):
                    if isinstance(progress, Exception):
                        raise fresh(progress)
                    ended = isinstance(progress, Left)
        except Stopped:
            return

    def prompt_tokens(self, frames: Sequence[Frame], text: str = "") -> int:
        """Count the tokens of a prompt about these frames.

        Raises:
            InvalidInput: the context cannot hold that many tokens.
        """
        return len(self._fitted.about(frames, text=text).token_ids)

    def read_image(
        self,
        image: ImageInput,
        before: Sequence[Frame] = (),
        asker: Asker = NOBODY,
        allow_mixed_studies: bool = False,
    ) -> list[Frame]:
        """Decode an image file that follows the frames `before`; returns frames for `GenerationRequest.frames`.

        Raises:
            InvalidInput: the file is unreadable, belongs to another study, or does not fit the context with those before it.
            NotPossibleHere: this machine cannot decode the file.
            NotFound: the frames `before` were read for another bundle.
            Unavailable: decoding is not possible now.
            Stopped: the file is no longer wanted.
        """
        measured = self._measure(image, asker, Untimed())
        refuse_mixed(_origins(before, [image], [measured]), allow_mixed_studies)
        self._fitted.about(before, [measured])
        return self._decode(image, measured, asker, Untimed())

    def close(self, reason: Unavailable | None = None) -> None:
        """End all calls with `reason`, and the threads after their current turn."""
        self._scheduler.close(reason)
        self._encoder.close(reason)
        self._forms.close()

    def seconds_in_turn(self) -> float:
        """Return how long the longest of the current turns has been running, in seconds."""
        return max(self._scheduler.seconds_in_turn(), self._encoder.seconds_in_turn())

    def stats(self) -> EngineStats:
        """Return the counters and gauges of the scheduler and the caches."""
        return EngineStats(self._scheduler.stats(), self._prefixes.stats(), self._images.stats())

    def _measure(self, image: ImageInput, asker: Asker, clock: Clock) -> Measured:
        if asker.stopped():
            raise Stopped
        measured = self._image_decoder.measure(image, self.settings.bounded(image.image_tokens).resolution, asker)
        clock.lap(Stage.DECODE_IMAGES)
        return measured

    def _decode(self, image: ImageInput, measured: Measured, asker: Asker, clock: Clock) -> list[Frame]:
        if asker.stopped():
            raise Stopped
        frames = self._image_decoder.decode(image, measured, asker)
        clock.lap(Stage.DECODE_IMAGES)
        return [replace(frame, image_tokens=image.image_tokens) for frame in frames]

    def _remember(self, generation: Generation, text: str, tokens: Sequence[int], finish: FinishReason) -> None:
        """Remember a reply's tokens for the next turn; not those with a special token, which would forge the conversation's structure."""
        own = tokens[:-1] if finish is FinishReason.STOP else tokens
        if finish is not FinishReason.CANCELLED and self.prompts.special_ids.isdisjoint(own):
            self._replies.put(generation.scope, generation.prompt.token_ids, text, own)

    def _ask_for_embeddings(
        self,
        frames: Sequence[Frame],
        request: GenerationRequest,
        stopped: Callable[[], bool],
        clock: Clock,
    ) -> list[Embedded | Future[Embedded]]:
        asked = [
            self._encoder.embed(frame, request.client, request.scope, request.priority, stopped) for frame in frames
        ]
        clock.lap(Stage.PROMPT)
        return asked

    def _generation(
        self,
        prompt: Prompt,
        images: Sequence[Embedded],
        request: GenerationRequest,
        stopped: Callable[[], bool],
        prefill_only: bool = False,
    ) -> Generation:
        name_blocks = partial(
            block_names, prompt, [(image.identity, len(image.embeddings)) for image in images], request.scope
        )
        # Nobody waits for a batch request, so no time and memory are spent on the next one.
        continued = name_blocks if request.priority is Priority.INTERACTIVE else None
        return Generation(
            prompt,
            partial(prompt_embeddings, self.model.backend, prompt, [image.embeddings for image in images]),
            name_blocks(),
            None if prefill_only else request.sampling,
            stopped,
            request.priority,
            request.client,
            request.scope,
            continued=continued,
            log_probabilities=request.log_probabilities,
        )


def _origins(
    frames: Sequence[Frame], images: Sequence[ImageInput], measured: Sequence[Measured]
) -> list[tuple[str, Origin]]:
    """List the origins of a study's frames and a call's images, each with its name."""
    read = [(frame.name, frame.origin) for frame in frames]
    return read + [(image.name, sizes.origin) for image, sizes in zip(images, measured, strict=True)]


def _timed_delivery(events: Iterable[Event], clock: Clock) -> Iterator[Event]:
    """Pass events on, and record as a span how long the caller takes for each."""
    for event in events:
        yield event
        clock.lap(Stage.DELIVER)
