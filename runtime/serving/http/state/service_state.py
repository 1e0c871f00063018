"""`/v1/service`: how busy the service is, and the last errors; a client sees the load and the errors of its own calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from echovlm_edge.runtime.engine.caching.reuse import StoreStats
from echovlm_edge.runtime.observability.last_errors import LastErrors
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange, as_json
from echovlm_edge.runtime.serving.http.exchange.http_calls import HttpCalls

METHOD = "GetServiceState"


class ServiceView:
    """Answers the service's state. It is polled, so that it is no call of its own in the log and the metrics."""

    def __init__(self, calls: HttpCalls, is_serving: Callable[[], bool], errors: LastErrors) -> None:
        """Describe the service of `calls`."""
        self._calls, self._is_serving, self._errors = calls, is_serving, errors
        self._started = time.monotonic()

    async def show(self, exchange: Exchange) -> None:
        """Answer `GET /v1/service`."""
        async with self._calls.unrecorded(METHOD, exchange) as client:
            await exchange.answer(as_json(self._state(client)))

    def _state(self, client: Client) -> dict[str, Any]:
        service = self._calls.service
        state, load = service.state(), service.admission.load()
        refused = state.info.refused_bundle
        scheduler, sees_all = state.engine.scheduler, client.operator or not client.is_named
        own = {name: calls for name, calls in load.items() if sees_all or name == client.name}
        return {
            "serving": self._is_serving(),
            "uptime_seconds": time.monotonic() - self._started,
            "model": {
                "name": state.info.model,
                "bundle_id": state.info.bundle_id,
                "target": state.info.target,
                "precision": state.info.precision,
                "max_sequence": state.info.max_sequence,
                "version": version("echovlm-edge"),
            },
            "refused_bundle": asdict(refused) if refused else None,
            "slots": {
                "total": scheduler.slots,
                "busy": scheduler.busy,
                "waiting": scheduler.waiting,
                "parked": scheduler.parked,
                "parked_bytes": scheduler.parked_bytes,
            },
            "places": {"total": service.admission.places, "taken": sum(load.values())},
            "tokens": {
                "prefilled": scheduler.prefilled_tokens,
                "reused": scheduler.reused_tokens,
                "written": scheduler.written_tokens,
                "decode_steps": scheduler.steps,
                "saved_steps": scheduler.drafting.saved_steps,
            },
            "caches": {"prompts": _cache(state.engine.prefixes), "images": _cache(state.engine.images)},
            "studies": {"open": state.studies[0], "bytes": state.studies[1]},
            "uploads": {"files": state.uploads[0], "bytes": state.uploads[1]},
            "clients": [{"name": name, "calls": calls} for name, calls in sorted(own.items())],
            "other_calls": sum(load.values()) - sum(own.values()),
            "errors": [asdict(error) for error in self._errors.listed() if sees_all or error.client == client.name],
        }


def _cache(stats: StoreStats) -> dict[str, int]:
    return {"hits": stats.hits, "misses": stats.misses, "entries": stats.entries, "bytes": stats.bytes}
