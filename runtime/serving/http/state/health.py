"""`/health` and `/health/live`: for everybody who can connect, as gRPC's health service is."""

from __future__ import annotations

from collections.abc import Callable

from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange, as_json


class Health:
    """Answers whether the server serves, and whether it lives. Requests' bodies are not read."""

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        """Answer by `is_serving`, which is false while an engine is replaced and while the server stops."""
        self._is_serving = is_serving

    async def ready(self, exchange: Exchange) -> None:
        """Answer 200 where a call would be answered, otherwise 503."""
        serving = self._is_serving()
        await exchange.answer(
            as_json({"status": "serving" if serving else "not serving"}), status=200 if serving else 503
        )

    async def live(self, exchange: Exchange) -> None:
        """Answer 200: the event loop runs."""
        await exchange.answer(as_json({"status": "live"}))
