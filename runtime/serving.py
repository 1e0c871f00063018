"""The engine that serves now: replaced by another bundle's without dropping a call, and by a new one where it hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from echovlm_edge.runtime.engine import EngineInfo, EngineStats, ReportEngine
from echovlm_edge.runtime.errors import Unavailable, UserError
from echovlm_edge.runtime.image_decoder import Asker
from echovlm_edge.runtime.request import Event, Frame, GenerationRequest, ImageInput

HUNG = Unavailable("The engine hung and is being replaced: ask again in a while.")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchdogOptions:
    """When an engine counts as hung, and how often that may happen.

    Attributes:
        hang_seconds: the longest that one image or one turn of the decoder may take.
        replacements: hung engines that are replaced in this process; a hung thread cannot be ended, so that after the last
            one the whole process is given up.
        look_seconds: between two looks.
    """

    hang_seconds: float = 300.0
    replacements: int = 3
    look_seconds: float = 1.0


class ServedEngine:
    """Passes calls to the engine of the moment. It counts as an engine itself."""

    def __init__(
        self,
        open_engine: Callable[[], ReportEngine],
        options: WatchdogOptions = WatchdogOptions(),
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the first engine.

        Args:
            open_engine: loads the bundle that is to be served; what it raises, this raises.
            options: of the watchdog.
            give_up: called once when engines hang more often than they may.
        """
        self._open, self._options, self._give_up = open_engine, options, give_up
        self._current = open_engine()
        self._calls: dict[ReportEngine, int] = {self._current: 0}
        self._lock = threading.Condition()
        self._swap = threading.Lock()
        self._closed = threading.Event()
        self._hangs = 0
        self.on_serving: Callable[[bool], None] = lambda serving: (
            None
        )  # told when it stops serving and when it serves again
        self.on_replaced: Callable[[], None] = lambda: None  # told when another engine has taken over
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._current.info

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        """See `ReportEngine.generate`: all of one call goes to one engine."""
        with self._lock:
            engine = self._current
            self._calls[engine] += 1
        try:
            yield from engine.generate(request, stopped)
        finally:
            with self._lock:
                self._calls[engine] -= 1
                self._lock.notify_all()

    def prepare(self, frames: Sequence[Frame], client: str, scope: str, stopped: Callable[[], bool]) -> None:
        """See `ReportEngine.prepare`."""
        self._current.prepare(frames, client, scope, stopped)

    def prompt_tokens(self, frames: Sequence[Frame]) -> int:
        """See `ReportEngine.prompt_tokens`."""
        return self._current.prompt_tokens(frames)

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        """See `ReportEngine.read_image`."""
        return self._current.read_image(image, before, asker, allow_mixed_studies)

    def stats(self) -> EngineStats:
        """See `ReportEngine.stats`."""
        return self._current.stats()

    def swap(self) -> bool:
        """Open the bundle anew beside what serves, and let it take over; the old engine ends with its last call.

        Returns whether it did: a bundle that cannot be loaded is logged, and changes nothing.
        """
        with self._swap:
            old = self._current
            try:
                self._take_over(self._open())
            except UserError as error:
                _log.error("the new bundle cannot be served, the old one stays: %s", error)
                return False
            except Exception as error:
                _log.error("the new bundle cannot be served, the old one stays: %s", type(error).__name__)
                return False
        _log.info("another bundle has taken over", extra={"bundle_id": self.info.bundle_id})
        threading.Thread(target=self._close_after_last_call, args=(old,), daemon=True).start()
        return True

    def close(self) -> None:
        """End everything."""
        self._closed.set()
        self._current.close()

    def _take_over(self, engine: ReportEngine) -> None:
        with self._lock:
            self._calls[engine] = 0
            self._current = engine
        self.on_replaced()

    def _close_after_last_call(self, engine: ReportEngine) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._calls[engine] == 0)
            del self._calls[engine]
        engine.close()

    def _watch(self) -> None:
        while not self._closed.wait(self._options.look_seconds):
            hung = self._current
            if hung.seconds_in_turn() > self._options.hang_seconds:
                self._replace(hung)

    def _replace(self, hung: ReportEngine) -> None:
        self._hangs += 1
        _log.error("the engine has hung for %.0f s: its calls end, and another one is loaded", hung.seconds_in_turn())
        self.on_serving(False)
        hung.close(HUNG)
        if self._hangs > self._options.replacements:
            _log.critical("engines hang again and again: giving up")
            self._closed.set()
            self._give_up()
            return
        started = time.monotonic()
        while not self._closed.is_set():
            try:
                with self._swap:
                    self._take_over(self._open())
                break
            except Exception as error:
                _log.error(
                    "no engine can be loaded: %s", error if isinstance(error, UserError) else type(error).__name__
                )
                self._closed.wait(10 * self._options.look_seconds)
        threading.Thread(target=self._close_after_last_call, args=(hung,), daemon=True).start()
        _log.info("another engine serves after %.1f s", time.monotonic() - started)
        self.on_serving(True)
