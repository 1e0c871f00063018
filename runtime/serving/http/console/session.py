"""What the console asks first: whether the server knows who calls, and what it offers. The answer is never an error."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec

from echovlm_edge.runtime.contracts.errors import Unauthenticated
from echovlm_edge.runtime.serving.access.identification import Access
from echovlm_edge.runtime.serving.http.exchange import Exchange, as_json
from echovlm_edge.runtime.serving.http.http_calls import HttpCalls

NEEDED = {"sr": "highdicom", "fhir": "fhir"}  # by a document: what makes it, of the extra `clinical`


class Session:
    """Answers whether a caller is known; a page that is refused elsewhere would fill the browser's log with errors."""

    def __init__(self, access: Access, calls: HttpCalls, study: Sequence[str]) -> None:
        """Identify callers by `access`; the files `study` are offered to try."""
        self._access, self._calls, self._study = access, calls, study
        self._documents = [kind for kind, module in NEEDED.items() if find_spec(module)]

    async def show(self, exchange: Exchange) -> None:
        """Answer `GET /console/session`."""
        answer: dict[str, object] = {"known": False}
        with suppress(Unauthenticated):  # a caller who is not known learns nothing else
            client = self._access.identify(exchange)
            uploads = self._calls.service.uploads
            answer = {
                "known": True,
                "client": client.name if client.is_named else "",
                "documents": self._documents,
                "study": list(self._study),
                "upload_bytes": uploads.most_bytes(client),
            }
        await exchange.answer(as_json(answer))
