"""Listen for associations: who may open one, which SOP classes and transfer syntaxes are accepted, and how many at once."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.dicom_node.receiving.header import IMAGES
from echovlm_edge.runtime.dicom_node.receiving.incoming import (
    BoundedSocket,
    NewFile,
    PatientStateMachine,
    SpoolingDimse,
)
from echovlm_edge.runtime.dicom_node.receiving.peers import Peers, certificate_names
from echovlm_edge.runtime.dicom_node.receiving.silence import measure_silence, silence_of
from echovlm_edge.runtime.formats.dicom_syntaxes import EVERY, NATIVE

VERIFICATION = "1.2.840.10008.1.1"
HANDSHAKE_SECONDS = 10.0  # for TLS, and for the request of an association
SPARE_CONNECTIONS = 16  # that may be open beyond the associations, to be refused in DICOM's way
SMALLEST_BOUND = 256 << 10  # a request for an association with many presentation contexts is longer than a small PDU
REJECTED_PERMANENT, BY_USER, CALLING_AE_UNKNOWN = 1, 1, 3  # PS3.8 9.3.4

_log = logging.getLogger(__name__)

# pynetdicom logs and prints what peers send; the node has a log of its own, without contents.
logging.getLogger("pynetdicom").addHandler(logging.NullHandler())
logging.getLogger("pynetdicom").propagate = False
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False
_config.LOG_HANDLER_LEVEL = "none"


@dataclass(frozen=True)
class ListenerLimits:
    """Limits of what peers may open and send.

    Attributes:
        associations: open at once.
        pdu_bytes: of one PDU.
        idle_seconds: until a silent association is closed, and for one PDU to arrive.
    """

    associations: int = 32
    pdu_bytes: int = 64 << 10
    idle_seconds: float = 60.0


Handler = tuple[evt.EventType, Callable[[evt.Event], Any]]


class Listener:
    """A running application entity.

    Raises:
        NotPossibleHere: the address cannot be used.
    """

    def __init__(
        self,
        address: tuple[str, int],
        ae_title: str,
        new_file: NewFile,
        handlers: Sequence[Handler],
        *,
        limits: ListenerLimits,
        peers: Peers,
        tls: ssl.SSLContext | None = None,
        other_classes: bool = False,
        further_classes: Sequence[str] = (),
    ) -> None:
        """Listen; port 0 takes a free one.

        Args:
            address: host and port.
            ae_title: its own; associations that call another are rejected.
            new_file: returns the file for a data set.
            handlers: pynetdicom's events, and what answers them.
            limits: of peers.
            peers: who may send.
            tls: encrypts the connections.
            other_classes: accept every storage SOP class, not only those of images.
            further_classes: SOP classes that are accepted with uncompressed transfer syntaxes, such as Modality Performed Procedure Step.
        """
        self._peers = peers
        entity = AE(ae_title)
        entity.require_called_aet = True
        entity.maximum_associations = limits.associations
        entity.maximum_pdu_size = limits.pdu_bytes
        entity.acse_timeout, entity.dimse_timeout = HANDSHAKE_SECONDS, limits.idle_seconds
        entity.network_timeout = limits.idle_seconds
        for plain in (VERIFICATION, *further_classes):
            entity.add_supported_context(plain, list(NATIVE))
        others = [context.abstract_syntax for context in AllStoragePresentationContexts] if other_classes else []
        for sop_class in dict.fromkeys((*IMAGES, *others)):
            entity.add_supported_context(cast(str, sop_class), list(EVERY))
        events = [(evt.EVT_REQUESTED, self._requested), *((kind, _held(handler)) for kind, handler in handlers)]
        try:
            self._server = _Server(entity, address, ae_title, events, tls, new_file, limits, peers)
        except OSError as error:
            raise NotPossibleHere(
                f"{address[0]}:{address[1]} cannot be used ({error.strerror}): give another --listen HOST:PORT."
            ) from None
        entity._servers.append(self._server)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="dicom", daemon=True).start()

    @property
    def associations(self) -> int:
        """How many associations are open."""
        return len(self._server.active_associations)

    def close(self) -> None:
        """Stop listening, and abort the associations that are open."""
        self._server.shutdown()
        for association in self._server.active_associations:
            association.abort()

    def _requested(self, event: evt.Event) -> None:
        association = event.assoc
        request = association.requestor.primitive
        title = str(request.calling_ae_title or "").strip() if request else ""
        address = str(association.requestor.address_info.address) if association.requestor.address_info else ""
        connection = association.dul.socket.socket if association.dul.socket else None
        names = certificate_names(connection.getpeercert()) if isinstance(connection, ssl.SSLSocket) else []
        if not self._peers.admit(title, address, names):
            _log.warning("an unknown sender was rejected", extra={"peer": address, "tried": "ae_title"})
            association.acse.send_reject(REJECTED_PERMANENT, BY_USER, CALLING_AE_UNKNOWN)
            evt.trigger(association, evt.EVT_REJECTED, {})
            association.kill()


class _Server(ThreadedAssociationServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        entity: AE,
        address: tuple[str, int],
        ae_title: str,
        events: list[Any],
        tls: ssl.SSLContext | None,
        new_file: NewFile,
        limits: ListenerLimits,
        peers: Peers,
    ) -> None:
        self.new_file, self.limits, self.peers = new_file, limits, peers
        super().__init__(
            entity, address, ae_title, entity.supported_contexts, tls, evt_handlers=events, request_handler=_Handler
        )

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; its TLS handshake is made in its own thread, so that nobody waits for it."""
        assert self.socket
        connection, address = self.socket.accept()
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Refuse a connection from where nobody may send, or where too many are open."""
        if not self.peers.may_connect(str(client_address[0])):
            _log.warning("an unknown sender was rejected", extra={"peer": str(client_address[0]), "tried": "address"})
            return False
        return len(self.active_associations) < self.limits.associations + SPARE_CONNECTIONS

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing but that a connection failed: it is a peer's fault, such as plain text to a TLS port."""
        _log.warning("a connection failed before its association", extra={"peer": str(client_address[0])})


class _Handler(RequestHandler):
    server: _Server

    def setup(self) -> None:
        """Make the TLS handshake."""
        connection = cast(socket.socket, self.request)
        connection.settimeout(HANDSHAKE_SECONDS)
        if self.server.ssl_context:
            self.request = self.server.ssl_context.wrap_socket(connection, server_side=True)

    def _create_association(self) -> Association:
        association = super()._create_association()
        limits = self.server.limits
        connection = cast(socket.socket, self.request)
        connection.settimeout(limits.idle_seconds)
        measure_silence(association)
        association.dul.state_machine = PatientStateMachine(association.dul)
        association.dimse = SpoolingDimse(association, self.server.new_file)
        while not association.dul.event_queue.empty():  # the first socket's indication of the connection
            association.dul.event_queue.get_nowait()
        most = max(limits.pdu_bytes, SMALLEST_BOUND)
        association.dul.socket = BoundedSocket(association, connection, most, limits.idle_seconds)
        association.bind(evt.EVT_CONN_CLOSE, _abandon)
        association.run = partial(_run, association)  # type: ignore[method-assign]
        return association


def _held(handler: Callable[[evt.Event], Any]) -> Callable[[evt.Event], Any]:
    """Return a handler during which its association is not taken to be silent."""

    def answer(event: evt.Event) -> Any:
        with silence_of(event.assoc).held():
            return handler(event)

    return answer


def _run(association: Association) -> None:
    """Run an association's thread, and leave no file of what it did not answer."""
    try:
        Association.run(association)
    finally:
        cast(SpoolingDimse, association.dimse).end()


def _abandon(event: evt.Event) -> None:
    """Remove the file of an instance that did not arrive whole."""
    if isinstance(event.assoc.dimse, SpoolingDimse):
        event.assoc.dimse.abandon()
