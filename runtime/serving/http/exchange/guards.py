"""Refuse requests that no client of this service sends: from pages of other origins, with a query, or compressed."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import NoReturn

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from echovlm_edge.runtime.serving.http.exchange.exchange import ClientDisconnect, Exchange
from echovlm_edge.runtime.serving.http.exchange.refusals import Refusal, Refused


class Guards:
    """Passes requests on to an application, or refuses them before anything of them is read."""

    def __init__(self, application: ASGIApp, names: Iterable[str], delivery_seconds: float) -> None:
        """Guard `application`, which clients may call without TLS under `names`, and by any address."""
        self._application, self._delivery_seconds = application, delivery_seconds
        self._names = {name.lower() for name in (*names, "localhost", socket.gethostname())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return
        try:
            self._check(scope, Headers(scope=scope))
        except Refused as refused:
            refusal = Refusal(refused.status, str(refused), refused.code, refused.param)
            with suppress(ClientDisconnect):
                await Exchange(scope, receive, send, self._delivery_seconds).refuse(refusal)
            return
        await self._application(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        # With TLS the client has checked the name against the certificate.
        if scope["scheme"] == "http" and not self._is_ours(_name(host)):
            _refuse(
                421,
                "wrong_host",
                "This server is not known by the name in the header Host: call it by its address, or have its operator add the "
                "name with --http-name.",
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"{scope['scheme']}://{host}".lower():
            _refuse(403, "foreign_origin", "Pages of other origins may not call this server: call it from a program.")
        if scope["query_string"]:
            _refuse(
                400,
                "query_not_allowed",
                "This server takes no query in the URL, which logs would keep: send a token in the header Authorization, and "
                "everything else in the body.",
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            _refuse(415, "compressed", "Compressed requests are not accepted: send the body as it is.")

    def _is_ours(self, name: str) -> bool:
        try:
            ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True


def _name(host: str) -> str:
    """Return a Host header's name or address, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _refuse(status: int, code: str, sentence: str) -> NoReturn:
    raise Refused(sentence, code, status=status)


def not_found(paths: Iterable[str]) -> Refusal:
    """Make the answer for a path that is not served."""
    listed = ", ".join(
        re.sub(r":\w+}", "}", path) for path in paths
    )  # without the router's own kinds, as in {model:path}
    return Refusal(404, f"There is no such path here: this server has {listed}.", "unknown_path")


def wrong_method(allowed: Iterable[str]) -> Refusal:
    """Make the answer for a method that a path does not have."""
    listed = ", ".join(sorted(allowed))
    return Refusal(405, f"This path takes {listed} alone.", "wrong_method", headers={"Allow": listed})
