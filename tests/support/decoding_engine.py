"""A fake engine for tests of the code around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from echovlm_edge.runtime.contracts.request import Event, Finished, FinishReason, Frame, GenerationRequest, ImageInput
from echovlm_edge.runtime.engine.caching.reuse import StoreStats
from echovlm_edge.runtime.engine.engine_info import EngineInfo, EngineStats
from echovlm_edge.runtime.engine.scheduling.drafting import DraftingStats
from echovlm_edge.runtime.engine.scheduling.scheduler import SchedulerStats
from echovlm_edge.runtime.imaging.decoder import Asker
from echovlm_edge.runtime.imaging.image_file import decode_image


class DecodingEngine:
    """Decodes images as the real engine does, and answers with one word."""

    info = EngineInfo("decoding", "0" * 64, "b", 1, "cpu", "fp32", 100, 1000)

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.requests.append(request)
        for image in request.images:
            decode_image(image)
        yield Finished("Done", (1,), FinishReason.STOP, 1, 0, {}, None)

    def stats(self) -> EngineStats:
        drafting = DraftingStats()
        return EngineStats(
            SchedulerStats(2, 1, 0, 0, 0, 5, 3, 8, 4, drafting), StoreStats(1, 2, 1, 64), StoreStats(0, 0, 0, 0)
        )

    def prepare(self, frames: Sequence[Frame], client: str, scope: str, stopped: Callable[[], bool]) -> None: ...

    def prompt_tokens(self, frames: Sequence[Frame]) -> int:
        return 10 * len(frames)

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        return decode_image(image)
