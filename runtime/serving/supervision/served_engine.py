"""Replace the serving engine when the bundle is reloaded, without dropping a call, and when the engine hangs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace

from echovlm_edge.runtime.bundle.loads import RefusedBundle
from echovlm_edge.runtime.contracts.errors import SHUTTING_DOWN, Unavailable
from echovlm_edge.runtime.contracts.request import Event, Finished, Frame, GenerationRequest, ImageInput
from echovlm_edge.runtime.engine.engine_info import EngineInfo, EngineStats
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.decoder import Asker
from echovlm_edge.runtime.serving.supervision.background import in_background
from echovlm_edge.runtime.serving.supervision.bundle_choice import reason

POLLS_BETWEEN_LOADS = 10  # while no engine can be loaded
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WatchdogOptions:
    """When an engine counts as hung, and how often that may happen.

    Attributes:
        hang_seconds: the longest that one image or one turn of the decoder may take.
        replacements: hung engines that are replaced in this process; a hung thread cannot be ended, so that after the last
            one the whole process ends.
        poll_seconds: between two polls of the engines.
        load_seconds: the longest time without an engine after a hang: a GPU that hangs mostly hangs for the next engine too,
            and then the whole process ends.
    """

    hang_seconds: float = 300.0
    replacements: int = 3
    poll_seconds: float = 1.0
    load_seconds: float = 900.0


class ServedEngine:
    """Pass calls to the current engine, by an engine's own interface.

    Three threads change which engines there are: the one that swaps, the watchdog, and the one that closes. An engine is open
    from its load until `_end`, which closes it exactly once: with its last call after a swap, when it hangs, or when all is
    closed. Between a hang and the next load no engine serves: the current one is then not open, and calls are refused.
    """

    def __init__(
        self,
        open_engine: Callable[[], ReportEngine],
        options: WatchdogOptions = WatchdogOptions(),
        give_up: Callable[[], None] = lambda: None,
        open_new: Callable[[], ReportEngine] | None = None,
        refused: Callable[[], RefusedBundle | None] = lambda: None,
    ) -> None:
        """Open the first engine.

        Args:
            open_engine: loads the bundle; its exceptions pass through.
            options: of the watchdog.
            give_up: called once when engines hang too often, or none can be loaded in time.
            open_new: loads the bundle for `swap`, which keeps the current engine where that fails; by default `open_engine`.
            refused: returns the bundle that should be served and is not; None where it is.
        """
        self._open, self._options, self._give_up = open_engine, options, give_up
        self._open_new, self._refused = open_new or open_engine, refused
        self._current = open_engine()
        self._calls: dict[ReportEngine, int] = {self._current: 0}  # the open engines, and how many calls use each
        self._lock = (
            threading.RLock()
        )  # reentrant: an abandoned generator may be closed, and take the lock, in a thread that holds it
        self._loading = threading.Lock()  # one load at a time: each engine takes as much memory as the first
        self._notifying, self._notified_serving = threading.Lock(), True
        self._closed = threading.Event()
        self._hangs, self._lost, self._next_load = 0, 0.0, 0.0
        self._replacing: Future[None] | None = None
        # Called when it stops serving and when it serves again, and when another engine has taken over.
        self.on_serving: Callable[[bool], None] = lambda serving: None
        self.on_replaced: Callable[[], None] = lambda: None
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def info(self) -> EngineInfo:
        """Which model and bundle are loaded, and which other bundle should be."""
        info, refused = self._current.info, self._refused()
        return replace(info, refused_bundle=refused) if refused else info

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Answer one request, as `ReportEngine.generate` does; one engine serves the whole call."""
        with self._call() as engine:
            for event in engine.generate(request, stopped):
                if isinstance(event, Finished):  # a text names the bundle that wrote it: another may have taken over
                    event = replace(event, model=engine.info.model, bundle_id=engine.info.bundle_id)
                yield event

    def prepare(self, frames: Sequence[Frame], client: str, scope: str, stopped: Callable[[], bool]) -> None:
        """Encode and prefill frames in the background, as `ReportEngine.prepare` does."""
        with self._call() as engine:
            engine.prepare(frames, client, scope, stopped)

    def prompt_tokens(self, frames: Sequence[Frame]) -> int:
        """Count the tokens of a prompt about frames, as `ReportEngine.prompt_tokens` does."""
        with self._call() as engine:
            return engine.prompt_tokens(frames)

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        """Decode an image file, as `ReportEngine.read_image` does."""
        with self._call() as engine:
            return engine.read_image(image, before, asker, allow_mixed_studies)

    def stats(self) -> EngineStats:
        """Return the current engine's counters and gauges."""
        return self._current.stats()

    def swap(self) -> bool:
        """Load the bundle again while the current engine serves, then switch to it; the old engine ends with its last call.

        Returns whether the new engine serves. A bundle that cannot be loaded is logged, and changes nothing.
        """
        with self._loading:
            if self._closed.is_set():
                return False
            try:
                engine = self._open_new()
            except Exception as error:
                _log.error("the new bundle cannot be served, the old one stays: %s", reason(error))
                return False
            if not self._take_over(engine):
                return False
        _log.info("another bundle has taken over", extra={"bundle_id": engine.info.bundle_id})
        return True

    def check(self) -> None:
        """Close engines that hang, and start to load another if none serves; the watchdog calls this."""
        for engine in self._hanging():
            self._end_hung(engine)
        if self._serves() or self._closed.is_set():
            return
        now = time.monotonic()
        if now - self._lost > self._options.load_seconds:
            self._end_all(f"no engine could be loaded for {now - self._lost:.0f} s")
        elif (self._replacing is None or self._replacing.done()) and now >= self._next_load:
            self._replacing = in_background(self._replace, "load")

    def close(self) -> None:
        """End everything; a load that still runs is abandoned, and its engine closed."""
        with self._lock:
            self._closed.set()
            engines = list(self._calls)
        for engine in engines:
            self._end(engine)

    @contextmanager
    def _call(self) -> Iterator[ReportEngine]:
        """Use the current engine, which stays open until the context ends."""
        with self._lock:
            engine = self._current
            if engine not in self._calls:
                raise Unavailable(SHUTTING_DOWN) if self._closed.is_set() else _hung()
            self._calls[engine] += 1
        try:
            yield engine
        finally:
            with self._lock:
                if engine in self._calls:
                    self._calls[engine] -= 1
            self._end_unused(engine)

    def _take_over(self, engine: ReportEngine) -> bool:
        """Serve from `engine`; if everything has been closed in the meantime, close it, too, and return False."""
        with self._lock:
            old, closed = self._current, self._closed.is_set()
            if not closed:
                self._calls[engine] = 0
                self._current = engine
        if closed:
            engine.close()
            return False
        self._end_unused(old)
        self._notify_serving()
        _notify(self.on_replaced)
        return True

    def _end_unused(self, engine: ReportEngine) -> None:
        with self._lock:
            unused = engine is not self._current and self._calls.get(engine) == 0
        if unused:
            self._end(engine)

    def _end(self, engine: ReportEngine, reason: Unavailable | None = None) -> bool:
        """Close an engine unless it is closed; returns whether this call closed it."""
        with self._lock:
            if self._calls.pop(engine, None) is None:
                return False
        engine.close(reason)
        return True

    def _serves(self) -> bool:
        with self._lock:
            return self._current in self._calls

    def _hanging(self) -> list[ReportEngine]:
        with self._lock:
            engines = list(self._calls)
        return [engine for engine in engines if engine.seconds_in_turn() > self._options.hang_seconds]

    def _end_hung(self, engine: ReportEngine) -> None:
        seconds = engine.seconds_in_turn()
        if not self._end(engine, _hung()):
            return
        self._hangs += 1
        _log.error("an engine has hung for %.0f s: its calls end", seconds)
        if not self._serves():
            self._lost = time.monotonic()
        self._notify_serving()
        if self._hangs > self._options.replacements:
            self._end_all("engines hang repeatedly")

    def _end_all(self, why: str) -> None:
        _log.critical("%s: the server exits", why)
        self.close()
        self._give_up()

    def _replace(self) -> None:
        started = time.monotonic()
        with self._loading:
            if self._serves() or self._closed.is_set():  # a swap was loading while the old engine hung, and now serves
                return
            try:
                replaced = self._take_over(self._open())
            except Exception as error:
                _log.error("no engine can be loaded: %s", reason(error))
                self._next_load = time.monotonic() + POLLS_BETWEEN_LOADS * self._options.poll_seconds
                return
        if replaced:
            _log.info("another engine serves after %.1f s", time.monotonic() - started)

    def _notify_serving(self) -> None:
        with self._notifying:  # so that the last notification is of the newest state
            serves = self._serves()
            if serves != self._notified_serving and not self._closed.is_set():
                self._notified_serving = serves
                _notify(lambda: self.on_serving(serves))

    def _watch(self) -> None:
        while not self._closed.wait(self._options.poll_seconds):
            try:
                self.check()
            except Exception as error:
                _log.error("the watchdog failed with %s", type(error).__name__)


def _notify(listener: Callable[[], None]) -> None:
    """Call a listener; if it fails, log that and continue to serve."""
    try:
        listener()
    except Exception as error:
        _log.error("a listener of the engine failed with %s", type(error).__name__)


# A new one for each call: an exception that several calls raise would keep the frames of all of them.
def _hung() -> Unavailable:
    return Unavailable("The engine hung and is being replaced: try again in a while.")
