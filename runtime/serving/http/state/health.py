"""`/health` and `/health/live`: for everybody who can connect, as gRPC's health service is."""

from __future__ import annotations

from collections.abc import Callable

from echovlm_edge.runtime.bundle.loads import RefusedBundle
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange, as_json


class Health:
    """Answers whether the server serves, and whether it lives. Requests' bodies are not read."""

    def __init__(self, is_serving: Callable[[], bool], refused: Callable[[], RefusedBundle | None]) -> None:
        """Describe the server.

        Args:
            is_serving: false while an engine is replaced and while the server stops.
            refused: returns the bundle that should serve and does not.
        """
        self._is_serving, self._refused = is_serving, refused

    async def ready(self, exchange: Exchange) -> None:
        """Answer 200 where a call would be answered, otherwise 503."""
        serving, refused = self._is_serving(), self._refused()
        state: dict[str, object] = {"status": "serving" if serving else "not serving"}
        if refused:
            state["refused_bundle"] = {"name": refused.name}  # the reason has paths, and whoever asks gives no token
        await exchange.answer(as_json(state), status=200 if serving else 503)

    async def live(self, exchange: Exchange) -> None:
        """Answer 200: the event loop runs."""
        await exchange.answer(as_json({"status": "live"}))
