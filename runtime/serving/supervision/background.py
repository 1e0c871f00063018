"""Run work in daemon threads, which never keep the process from ending: loading a bundle, and reloading it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Outcome = TypeVar("Outcome")

_log = logging.getLogger(__name__)


def in_background(work: Callable[[], Outcome], name: str) -> Future[Outcome]:
    """Run `work` in a thread called `name`; the thread is abandoned if the process ends first."""
    done: Future[Outcome] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return done


class Reloads:
    """Runs reloads one after another in a separate thread; requests that arrive before the next one starts count as one."""

    def __init__(self, reload: Callable[[], object]) -> None:
        """Start the thread; it never runs `reload` twice at once."""
        self._reload, self._asked = reload, threading.Event()
        threading.Thread(target=self._run, name="reload", daemon=True).start()

    def ask(self) -> None:
        """Request a reload; returns at once."""
        self._asked.set()

    def _run(self) -> None:
        while self._asked.wait():
            self._asked.clear()
            try:
                self._reload()
            except Exception as error:
                _log.error("a reload failed with %s", type(error).__name__)
