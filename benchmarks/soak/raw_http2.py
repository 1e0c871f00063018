"""A gRPC client that misbehaves at the HTTP/2 level: it sends headers but no message, or opens no flow-control window."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes


class RawConnection:
    """One HTTP/2 connection; use it as a context manager."""

    def __init__(self, address: str, window: int = 65_535, token: str | None = None) -> None:
        """`window`: bytes of each answer that the server may send before it waits for a window update."""
        host, _, port = address.rpartition(":")
        self._authority, self._token = address, token
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self._connection = H2Connection(H2Configuration(client_side=True))
        self._connection.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
        self._connection.initiate_connection()
        self._flush()

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def call(self, method: str, *messages: bytes, end: bool = True) -> int:
        """Begin a call of `/service/Method` with these messages; returns the stream. Without messages and `end` it is half-open."""
        stream = self._connection.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        if self._token is not None:
            headers.append(("authorization", f"Bearer {self._token}"))
        self._connection.send_headers(stream, headers, end_stream=end and not messages)
        for index, message in enumerate(messages, 1):
            framed = struct.pack(">BI", 0, len(message)) + message
            self._connection.send_data(stream, framed, end_stream=end and index == len(messages))
        self._flush()
        return stream

    def events_until_end(self, streams: Sequence[int]) -> list[Event]:
        """Read until all of these streams have ended; acknowledges nothing, so that no flow-control window opens again."""
        waiting, events = set(streams), list[Event]()
        while waiting:
            data = self.socket.recv(1 << 16)
            if not data:
                break
            for event in self._connection.receive_data(data):
                events.append(event)
                if isinstance(event, StreamEnded | StreamReset | TrailersReceived):
                    waiting.discard(event.stream_id)
            self._flush()
        return events

    def _flush(self) -> None:
        self.socket.sendall(self._connection.data_to_send())


def grpc_status(events: Sequence[Event]) -> dict[int, str]:
    """Return what each stream ended with: the `grpc-status` of its last headers."""
    ends = [event for event in events if isinstance(event, ResponseReceived | TrailersReceived)]
    headers = {event.stream_id: dict(event.headers or ()) for event in ends if event.stream_id is not None}
    return {stream: last[b"grpc-status"].decode() for stream, last in headers.items() if b"grpc-status" in last}
