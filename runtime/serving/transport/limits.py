"""The limits of connections and calls that every door keeps, apart from the places of admission."""

from __future__ import annotations

from dataclasses import dataclass, field

from echovlm_edge.runtime.serving.transport.receiving import ReceivingLimits
from echovlm_edge.runtime.serving.transport.receiving_files import FileReceivingLimits


@dataclass(frozen=True)
class TransportLimits:
    """Limits of connections and calls, apart from the places of `Admission`.

    Attributes:
        connections: open at once; fewer if the process has too few descriptors.
        handshake_seconds: for a connection's TLS and HTTP/2 handshakes; by HTTP/1.1, for the head of a request.
        idle_seconds: a connection without a call is closed after this; clients reconnect by themselves.
        calls: in flight of all clients, from the metadata to the last byte delivered.
        calls_per_client: in flight of one client.
        receiving: limits of messages that are being received.
        receiving_files: limits of uploads that are being received.
        delivery_seconds: for a client to read one message of an answer.
        health_seconds: for reading a health check's request; after this it is answered without being read.
    """

    connections: int = 4096
    handshake_seconds: float = 10.0
    idle_seconds: float = 120.0
    calls: int = 2048
    calls_per_client: int = 128
    receiving: ReceivingLimits = field(default_factory=ReceivingLimits)
    receiving_files: FileReceivingLimits = field(default_factory=FileReceivingLimits)
    delivery_seconds: float = 30.0
    health_seconds: float = 0.25
