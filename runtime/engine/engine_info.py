"""What an engine says of itself: the loaded model, and its counters."""

from __future__ import annotations

from dataclasses import dataclass, field

from echovlm_edge.runtime.bundle.loads import RefusedBundle
from echovlm_edge.runtime.bundle.manifest import AdapterSource
from echovlm_edge.runtime.engine.caching.reuse import StoreStats
from echovlm_edge.runtime.engine.scheduling.scheduler import SchedulerStats


@dataclass(frozen=True)
class EngineStats:
    """An engine's counters and gauges, for metrics."""

    scheduler: SchedulerStats
    prefixes: StoreStats
    images: StoreStats


@dataclass(frozen=True)
class EngineInfo:
    """Which model and bundle are loaded, for GetModelInfo and logs."""

    model: str
    checkpoint_sha256: str
    bundle_id: str
    bundle_format: int
    target: str
    precision: str
    max_sequence: int
    max_pixels: int  # of one frame after resizing; larger frames are scaled down
    # Hashes of the pictures that its weights were rounded with.
    calibration_pictures: frozenset[str] = field(default=frozenset(), repr=False)
    adapter: AdapterSource | None = None
    # The least and the largest bound on a frame's tokens that a request may ask for.
    image_tokens: tuple[int, int] = (1, 1)
    # The bundle that should be served and is not; an engine by itself does not know.
    refused_bundle: RefusedBundle | None = field(default=None, repr=False)
