"""Choose the bundle that is served: the one at --bundle, or the previous one in its folder where that cannot be served."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from echovlm_edge.runtime.bundle.installed import PREVIOUS, linked
from echovlm_edge.runtime.bundle.loads import MOST_CRASHES, Loads, RefusedBundle
from echovlm_edge.runtime.bundle.manifest import CURRENT, MANIFEST, bundle_at
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, UserError
from echovlm_edge.runtime.contracts.printable import printable
from echovlm_edge.runtime.engine.report_engine import ReportEngine

_log = logging.getLogger(__name__)


class BundleChoice:
    """Opens bundles, and remembers why the one that should be served is not; in a folder of bundles also on disk.

    Attributes:
        refused: None while the bundle at --bundle is the one that serves.
    """

    def __init__(self, path: Path, open_bundle: Callable[[Path], ReportEngine], recorded: bool = True) -> None:
        """Choose a bundle.

        Args:
            path: a bundle or a folder of bundles.
            open_bundle: loads one and checks it.
            recorded: write into a folder of bundles what became of loading them; not where processes are killed as a matter of course.
        """
        self._path, self._open = path, open_bundle
        is_folder = os.path.lexists(path / CURRENT) and not (path / MANIFEST).exists()
        self._loads = Loads(path.resolve()) if is_folder and recorded else None
        self.refused: RefusedBundle | None = None

    def open_chosen(self) -> ReportEngine:
        """Open the bundle that should be served; if it cannot be, `refused` says why, and what `open_bundle` raised passes through."""
        bundle = bundle_at(self._path)
        try:
            engine = self._open_counted(self._loads, bundle) if self._loads else self._open(bundle)
        except Exception as error:
            self.refused = RefusedBundle(printable(bundle.name), printable(reason(error)))
            if self._loads and bundle.exists():
                self._loads.refuse(bundle.name, self.refused.reason)
            raise
        self.refused = None
        return engine

    def open_chosen_or_previous(self) -> ReportEngine:
        """Open the bundle that should be served, or where that cannot be, the previous one; raises why the former cannot be.

        One that is refused only because its loading has ended the process is loaded all the same where nothing else can serve.
        """
        try:
            return self.open_chosen()
        except Exception as error:
            failed = error.with_traceback(
                None
            )  # its frames would keep the engine, and a GPU's memory, while another one is loaded
        chosen, previous = bundle_at(self._path), linked(self._path, PREVIOUS)
        suspects = [chosen] if isinstance(failed, _Crashes) else []
        if previous is not None and previous != chosen:
            _log.error("the current bundle cannot be served, the previous one is loaded: %s", reason(failed))
            try:
                if self._loads:
                    _refuse_crashing(self._loads, previous)
                return self._open(previous)
            except Exception as error:
                _log.error("the previous bundle cannot be served either: %s", reason(error))
                suspects += [previous] if isinstance(error, _Crashes) else []
        for bundle in suspects:
            _log.warning(
                "nothing else can serve, so that a bundle is loaded whose loading ended the process: %s", bundle
            )
            with suppress(Exception):
                return self._open_suspect(bundle, bundle == chosen)
        raise failed

    def stop(self) -> None:
        """Count a load that still runs as cut off, not as crashed: the process is about to end."""
        if self._loads:
            self._loads.stop()

    def _open_suspect(self, bundle: Path, chosen: bool) -> ReportEngine:
        """Open a bundle whatever is recorded against it; another crash is not counted, so that the records do not grow."""
        try:
            engine = self._open(bundle)
        except Exception as error:
            _log.error("it cannot be served: %s", reason(error))
            raise
        if chosen:
            self.refused = None
        self._clear(bundle)
        return engine

    def _open_counted(self, loads: Loads, bundle: Path) -> ReportEngine:
        _refuse_crashing(loads, bundle)
        with loads.loading(bundle.name):
            engine = self._open(bundle)
        self._clear(bundle)
        return engine

    def _clear(self, bundle: Path) -> None:
        try:
            if self._loads:
                self._loads.clear(bundle.name)
        except NotPossibleHere as error:
            _log.warning("%s", error)


class _Crashes(NotPossibleHere):
    """A bundle's loading has ended the process too often."""


def _refuse_crashing(loads: Loads, bundle: Path) -> None:
    """Refuse a bundle whose loading has ended the process too often.

    Raises:
        _Crashes: it has.
    """
    if (crashes := loads.crashes(bundle.name)) >= MOST_CRASHES:
        raise _Crashes(
            f"The bundle {bundle} has ended the server's process {crashes} times while it was loaded (a crash, or too little memory: "
            "journalctl -k says which), and is not loaded while another one can serve: install another one, or this one again to try it."
        )


def reason(error: Exception) -> str:
    """Describe an error for the log: the text of one that is not ours could quote a request."""
    return str(error) if isinstance(error, UserError) else type(error).__name__
