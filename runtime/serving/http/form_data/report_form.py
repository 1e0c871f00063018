"""A multipart body of `/v1/reports`: files go to uploads as they arrive, and fields are texts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from echovlm_edge.runtime.serving.http.exchange.refusals import Refused
from echovlm_edge.runtime.serving.http.form_data.report_fields import FILE
from echovlm_edge.runtime.serving.uploads import IncomingFile

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # its lines quote the body

MOST_PARTS, MOST_FIELD_BYTES = 256, 1 << 20
MOST_AROUND = 64 << 10  # bytes that are no part's: boundaries, heads, a preamble and what follows the end


@dataclass(eq=False)
class SentFile:
    """A file part: its upload, and the media type that the part states, empty where it says nothing of the kind."""

    upload: IncomingFile
    media_type: str = field(repr=False)


@dataclass(eq=False)
class _Part:
    name: str = field(repr=False)
    file: SentFile | None = None
    text: bytearray = field(default_factory=bytearray, repr=False)


class ReportForm:
    """Splits one body as it arrives. One thread at a time feeds it.

    Attributes:
        files: those that have come, in order.
    """

    def __init__(self, boundary: bytes, new_file: Callable[[], IncomingFile], most_files: int) -> None:
        """Write each file to one that `new_file` returns, at most `most_files`.

        Raises:
            Refused: the boundary is not one.
        """
        self.files: list[SentFile] = []
        self._new_file, self._most_files = new_file, most_files
        self._texts: dict[str, str] = {}
        self._head: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._part: _Part | None = None
        self._parts = self._inside = self._fed = self._text_bytes = 0
        self._over = False
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_head,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError:
            raise malformed() from None

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            Refused: the body is no such form, or has more than it may.
            UserError: from an upload.
        """
        self._fed += len(data)
        try:
            self._parser.write(data)
        except FormParserError:
            raise malformed() from None
        if self._fed - self._inside > MOST_AROUND:
            raise malformed()

    def texts(self) -> dict[str, str]:
        """Return the fields beside the files, at the body's end.

        Raises:
            Refused: the body has not come to its end.
        """
        if not self._over:
            raise malformed()
        return self._texts

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise Refused(f"The form has more than {MOST_PARTS} parts: send fewer.", "request_too_large", status=413)
        self._head = {}

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._head[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _end_head(self) -> None:
        kind, options = parse_options_header(self._head.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not name:
            raise malformed()
        self._part = _Part(name)
        if name == FILE:
            if len(self.files) >= self._most_files:
                raise Refused(f"The form has more than {self._most_files} files: send fewer.", "too_many_files", FILE)
            self._part.file = SentFile(self._new_file(), _media_type(self._head.get(b"content-type", b"")))
            self.files.append(self._part.file)
        elif name in self._texts:
            raise Refused(f"The field {name[:200]} is there twice: send it once.", "invalid_value", name[:200])

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part
        self._inside += end - start
        if self._part.file:
            self._part.file.upload.add(data[start:end])
            return
        self._text_bytes += end - start
        if self._text_bytes > MOST_FIELD_BYTES:
            raise Refused("The form's fields have more than 1 MB: send less text.", "request_too_large", status=413)
        self._part.text += data[start:end]

    def _end_part(self) -> None:
        assert self._part
        if not self._part.file:
            try:
                self._texts[self._part.name] = self._part.text.decode()
            except UnicodeDecodeError:
                name = self._part.name[:200]
                raise Refused(f"The field {name} is not UTF-8: send text in UTF-8.", "invalid_value", name) from None

    def _end(self) -> None:
        self._over = True


_TYPE = re.compile(rb"[a-z]+/[a-z0-9.+-]+", re.IGNORECASE)


def _media_type(header: bytes) -> str:
    """Return a part's media type; empty for what clients say of any file, so that the file's own bytes decide."""
    found = _TYPE.match(header)
    kind = found[0].decode().lower() if found else ""
    return "" if kind in ("application/octet-stream", "text/plain") else kind


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a request's Content-Type states.

    Raises:
        Refused: it is no form, or states none.
    """
    kind, options = parse_options_header(content_type.encode("latin-1", "replace"))
    if kind != b"multipart/form-data":
        raise Refused(
            "The body must be a form with files: send Content-Type: multipart/form-data.",
            "wrong_content_type",
            status=415,
        )
    if not (boundary := options.get(b"boundary", b"")):
        raise malformed()
    return boundary


def malformed() -> Refused:
    """Make the error about a body that is no complete form."""
    return Refused("The body is not a complete multipart/form-data form: send it again.", "invalid_form")
