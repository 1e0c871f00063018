"""Choose the bundle that is served: the one at --bundle, or the previous one in its folder where that cannot be served."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from echovlm_edge.runtime.bundle.installed import PREVIOUS, linked
from echovlm_edge.runtime.bundle.manifest import bundle_at
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.engine.report_engine import ReportEngine

_log = logging.getLogger(__name__)


class BundleChoice:
    """Opens bundles, and remembers why the one that should be served is not.

    Attributes:
        refusal: one sentence, empty while the bundle at --bundle is the one that serves.
    """

    def __init__(self, path: Path, open_bundle: Callable[[Path], ReportEngine]) -> None:
        """Choose from `path`, a bundle or a folder of bundles; `open_bundle` loads one and checks it."""
        self._path, self._open = path, open_bundle
        self.refusal = ""

    def open_chosen(self) -> ReportEngine:
        """Open the bundle that should be served; if it cannot be, `refusal` says why, and what `open_bundle` raised passes through."""
        try:
            engine = self._open(bundle_at(self._path))
        except Exception as error:
            self.refusal = reason(error)
            raise
        self.refusal = ""
        return engine

    def open_chosen_or_previous(self) -> ReportEngine:
        """Open the bundle that should be served, or where that cannot be, the previous one; raises why the former cannot be."""
        try:
            return self.open_chosen()
        except Exception as error:
            failed = error.with_traceback(
                None
            )  # its frames would keep the engine, and a GPU's memory, while another one is loaded
        previous = linked(self._path, PREVIOUS)
        if previous is None or previous == bundle_at(self._path):
            raise failed
        _log.error("the current bundle cannot be served, the previous one is loaded: %s", reason(failed))
        try:
            return self._open(previous)
        except Exception as error:
            _log.error("the previous bundle cannot be served either: %s", reason(error))
            raise failed from None


def reason(error: Exception) -> str:
    """Describe an error for the log: the text of one that is not ours could quote a request."""
    return str(error) if isinstance(error, UserError) else type(error).__name__
