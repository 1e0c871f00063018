"""Read a JSON body with pictures: data URIs are cut out before the rest is parsed, so that what is parsed is small.

A megabyte of JSON can become a hundred megabytes of objects. A request's pictures make it large, its structure does not.
"""

from __future__ import annotations

import binascii
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn

from pydantic import BeforeValidator

from echovlm_edge.runtime.serving.http.exchange.refusals import Refused

MOST_URIS = 1024
MOST_MEMBERS = 256  # of an object
MOST_BYTES = 1 << 20  # of a body without its data URIs, as of a gRPC message without its files
# A string that begins with data: and the quote before it, which no backslash escapes.
_DATA_URI = re.compile(rb'(?<!\\)"(data:(?:[^"\\]++|\\.)*+)"', re.DOTALL)
_HEAD = re.compile(rb"data:([a-z0-9.+-]+/[a-z0-9.+-]+)?;base64", re.IGNORECASE)
_LONGEST_HEAD = 200


@dataclass(frozen=True)
class DataUri:
    """A data URI (RFC 2397) as it stands in the body, between its quotes."""

    written: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The string itself, where it stands for a text.

        Raises:
            ValueError: it is no string of JSON, or is longer than a body may be without its data URIs.
        """
        if len(self.written) > MOST_BYTES:
            raise ValueError(f"a text has at most {MOST_BYTES:,} bytes")
        text = str(json.loads(b'"%b"' % self.written))
        text.encode()  # half of a surrogate pair is no text
        return text

    def file(self, param: str) -> tuple[str, bytes]:
        """Return its media type and bytes; `param` names it in errors.

        Raises:
            Refused: it is not base64.
        """
        written = self.written.replace(b"\\/", b"/")  # some encoders escape every slash; base64 needs no other escape
        end = written.find(b",", 0, _LONGEST_HEAD)
        head = _HEAD.fullmatch(written, 0, max(end, 0))
        if not head:
            raise Refused(
                f"{param} is not a data URI in base64: send for example data:image/png;base64,iVBORw0K…", param=param
            )
        try:
            data = binascii.a2b_base64(memoryview(written)[end + 1 :], strict_mode=True)
        except binascii.Error:
            raise Refused(
                f"{param} has base64 that cannot be decoded: send the file's bytes encoded once.", param=param
            ) from None
        if not data:
            raise Refused(f"{param} is empty: send the file's bytes.", param=param)
        return (head[1] or b"").decode().lower(), data


def _text(value: object) -> object:
    return value.text if isinstance(value, DataUri) else value


Text = Annotated[str, BeforeValidator(_text)]  # a field of a body that may begin with data:


def read_json(body: bytes | bytearray) -> dict[str, Any]:
    """Parse a body; strings that begin with `data:` are `DataUri`, wherever they are.

    Raises:
        Refused: it is no JSON object, or is large without its data URIs.
    """
    cut: dict[str, DataUri] = {}
    mark = secrets.token_hex(8)  # a string of the body's own cannot be one of the places

    def cut_out(found: re.Match[bytes]) -> bytes:
        if len(cut) >= MOST_URIS:
            raise Refused(
                f"The request has more than {MOST_URIS:,} data URIs: send fewer.", "request_too_large", status=413
            )
        place = f"{mark}:{len(cut)}"
        cut[place] = DataUri(found[1])
        return f'"{place}"'.encode()

    rest = _DATA_URI.sub(cut_out, body)
    if len(rest) > MOST_BYTES:
        raise Refused(
            f"The request has {len(rest):,} bytes besides its data URIs, more than {MOST_BYTES:,}: send a smaller one.",
            "request_too_large",
            status=413,
        )
    try:
        parsed = json.loads(rest.decode(), parse_constant=_no_number)
        if not isinstance(parsed, dict):
            raise ValueError
        value = _put_back(parsed, cut)
        assert isinstance(value, dict)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Refused("The body is not a JSON object: send one, in UTF-8.", "invalid_json") from None
    return value


def _put_back(value: Any, cut: dict[str, DataUri]) -> Any:
    match value:
        case dict():
            if len(value) > MOST_MEMBERS:
                raise Refused(
                    f"The body has an object with more than {MOST_MEMBERS} members: send fewer.", "invalid_json"
                )
            return {_key(key, cut): _put_back(inner, cut) for key, inner in value.items()}
        case list():
            return [_put_back(inner, cut) for inner in value]
        case str():
            value.encode()  # half of a surrogate pair is no text
            return cut.get(value, value)
    return value


def _key(name: str, cut: dict[str, DataUri]) -> str:
    name.encode()
    return cut[name].text if name in cut else name


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)
