"""A fake engine that reads images as the real one does, and answers with a text of the test's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    Frame,
    GenerationRequest,
    ImageInput,
    Resolution,
    TextDelta,
    pictures,
)
from echovlm_edge.runtime.imaging.decoder import IN_PROCESS, Asker
from tests.support.decoding_engine import DecodingEngine

RESOLUTION = Resolution(28, 28 * 28, 392 * 392)


class TellingEngine(DecodingEngine):
    """Answers every request with `text`, which ends for the reason `finish`."""

    def __init__(self, text: str, finish: FinishReason = FinishReason.STOP) -> None:
        super().__init__()
        self.text, self.finish = text, finish

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        frames = list(request.frames)
        for place, image in enumerate(request.images, 1):
            frames += [replace(frame, image=place) for frame in _read(image)]
        yield TextDelta(self.text)
        yield Finished(self.text, (1,), self.finish, 1, 0, {}, None, pictures=pictures(frames))

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        return _read(image)


def _read(image: ImageInput) -> list[Frame]:
    return IN_PROCESS.decode(image, IN_PROCESS.measure(image, RESOLUTION))
