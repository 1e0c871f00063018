"""Open an engine that is to be measured in this process."""

from __future__ import annotations

from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine


def measured_engine(bundle: Bundle, slots: int, threads: int | None = None, drafting: bool = True) -> ReportEngine:
    """Open an engine of `slots` sequences that writes past the model's own end; close it afterwards.

    Runs repeat one text, so that it keeps no phrases of finished ones: what earlier runs said would draft all of it.
    """
    options = EngineOptions(slots=slots, ignore_stop=True, drafting=drafting, reply_bytes=0)
    backend = open_backend(bundle, threads, options.slot_memory(bundle.manifest, None))
    return ReportEngine(bundle, backend, options=options)
