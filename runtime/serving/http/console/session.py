"""What the console asks first: whether the server knows who calls, and what it offers. The answer is never an error."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from echovlm_edge.runtime.contracts.errors import Unauthenticated
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.access.identification import Access, log_refusal
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange, as_json

METHOD = "GetConsoleSession"
NEEDED = {"sr": "highdicom", "fhir": "fhir"}  # by a document: what makes it, of the extra `clinical`


class Session:
    """Answers whether a caller is known; a page that is refused elsewhere would fill the browser's log with errors."""

    def __init__(self, access: Access, study: Sequence[str]) -> None:
        """Identify callers by `access`; the files `study` are offered to try."""
        self._access, self._study = access, study
        self._documents = [kind for kind, module in NEEDED.items() if find_spec(module)]

    async def show(self, exchange: Exchange) -> None:
        """Answer `GET /console/session`."""
        client = self._known(exchange)
        answer: dict[str, object] = {"known": client is not None}
        if client:  # who is not known learns nothing else
            answer |= {"documents": self._documents, "study": list(self._study)}
        await exchange.answer(as_json(answer))

    def _known(self, exchange: Exchange) -> Client | None:
        try:
            return self._access.identify(exchange)
        except Unauthenticated as error:
            if error.tried != "none":  # wrong credentials are logged as everywhere; to open the page is no attempt
                log_refusal(METHOD, exchange, error)
            return None
