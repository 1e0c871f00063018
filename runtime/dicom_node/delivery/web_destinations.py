"""Destinations on the web: DICOM documents by STOW-RS (PS3.18 10.5), FHIR by a conditional create."""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.dicom_node.delivery.destinations import TIMEOUT_SECONDS, NotDelivered
from echovlm_edge.runtime.dicom_node.spool.rows import Document

OK, CREATED, CONFLICT = 200, 201, 409
FAILED_SEQUENCE = "00081198"
MOST_ANSWER = 1 << 20  # bytes of an answer that are read


@dataclass(frozen=True)
class Web:
    """How the node speaks to web destinations.

    Attributes:
        tls: for https.
        token: bearer token; empty for none.
    """

    tls: ssl.SSLContext = field(repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class StowServer:
    """A DICOMweb server: `url` is that of its studies, for example https://pacs/dicom-web/studies."""

    name: str
    kinds: tuple[str, ...]
    url: str
    web: Web

    def send(self, document: Document) -> None:
        """Store the document; one that the server has already is acknowledged, too."""
        boundary = secrets.token_hex(16)
        body = (
            f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            + document.content
            + f"\r\n--{boundary}--\r\n".encode()
        )
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": "application/dicom+json",
        }
        status, answer = _post(self, self.url, body, headers)
        if status == CONFLICT and _is_known(answer):
            return
        if status != OK or _failed(answer):
            raise NotDelivered(f"{self.name} answered {status}{' and a failure' if _failed(answer) else ''}")


@dataclass(frozen=True)
class FhirServer:
    """A FHIR R4 server: `url` is its base, for example https://hospital/fhir."""

    name: str
    kinds: tuple[str, ...]
    url: str
    web: Web

    def send(self, document: Document) -> None:
        """Create the resource unless the server has one with its identifier (http.html#ccreate)."""
        headers = {
            "Content-Type": "application/fhir+json",
            "Accept": "application/fhir+json",
            "If-None-Exist": f"identifier=urn:dicom:uid|urn:oid:{document.sop_instance}",
        }
        status, _ = _post(self, f"{self.url.rstrip('/')}/DiagnosticReport", document.content, headers)
        if status not in (OK, CREATED):
            raise NotDelivered(f"{self.name} answered {status}")


def web_destination(given: str, kinds: tuple[str, ...], web: Web) -> StowServer | FhirServer | None:
    """Read a destination: `https://…` for STOW-RS, `fhir+https://…` for FHIR, also with http; None if it is none of these.

    Raises:
        InvalidInput: it names no host, or a token would be sent in plain text.
    """
    is_fhir = given.startswith("fhir+")
    url = given.removeprefix("fhir+")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return None
    if not parts.hostname:
        raise InvalidInput(f"--destination {given} names no host: give for example https://pacs/dicom-web/studies.")
    if web.token and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise InvalidInput(f"--destination {given} would get the token in plain text: use https.")
    return FhirServer(given, ("fhir",), url, web) if is_fhir else StowServer(given, kinds, url, web)


def _post(to: StowServer | FhirServer, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    parts = urlsplit(url)
    assert parts.hostname
    if to.web.token:
        headers["Authorization"] = f"Bearer {to.web.token}"
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=TIMEOUT_SECONDS, context=to.web.tls
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(MOST_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        raise NotDelivered(f"{to.name} cannot be reached ({type(error).__name__})") from None
    finally:
        connection.close()


def _failed(answer: bytes) -> bool:
    """Tell whether a STOW-RS answer lists a failed instance; an answer that is no JSON lists none."""
    return bool(_json(answer).get(FAILED_SEQUENCE))


def _is_known(answer: bytes) -> bool:
    """Tell whether all failures of an answer say that the instance is there already (0111H)."""
    failed = _json(answer).get(FAILED_SEQUENCE, {}).get("Value", [])
    reasons = [item.get("00081197", {}).get("Value", [None])[0] for item in failed]
    return bool(reasons) and all(reason == 0x0111 for reason in reasons)


def _json(answer: bytes) -> dict[str, dict[str, list[dict[str, dict[str, list[int]]]]]]:
    try:
        parsed = json.loads(answer)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
