"""Receive data sets into files of the spool: a C-STORE of any size takes no memory, and a peer cannot send more than the limits.

pynetdicom collects a data set in a BytesIO, or in a file in the system's temporary folder. These classes take its place, per
association: an `IncomingFile` for the data set, and a socket that refuses PDUs longer than were negotiated.
"""

from __future__ import annotations

import logging
import os
import queue
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import C_STORE_RQ, DIMSEMessage
from pynetdicom.dsutils import create_file_meta
from pynetdicom.fsm import StateMachine
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from echovlm_edge.runtime.dicom_node.receiving.received_file import ReceivedFile, TooMuch
from echovlm_edge.runtime.dicom_node.receiving.silence import silence_of

if TYPE_CHECKING:
    import socket

    from pynetdicom.association import Association

MOST_COMMAND = 64 << 10  # bytes of a command set, and 1 MB of the data set of any other message than C-STORE
MOST_OTHER = 1 << 20
PIECE = 64 << 10
INVALID_PDU = "Evt19"  # of PS3.8's state machine: the association is aborted
OVER = ("Sta1", "Sta13")  # idle; waiting for the peer to close the connection

NewFile = Callable[[], ReceivedFile]

_log = logging.getLogger(__name__)


class IncomingFile(BytesIO):
    """The data set of one message: for C-STORE a DICOM file in the spool, otherwise memory.

    A fault while writing, for example a full disk, is kept in `fault`: the rest of the data set is passed over, and the handler
    answers with the status for it.
    """

    def __init__(self, message: DIMSEMessage, association: Association, new_file: NewFile) -> None:
        """Write to the file that `new_file` returns."""
        super().__init__()
        self._message, self._association, self._new_file = message, association, new_file
        self._bytes = 0
        self.file: ReceivedFile | None = None
        self.fault: OSError | sqlite3.Error | TooMuch | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Append a fragment."""
        if not isinstance(self._message, C_STORE_RQ):
            self._bytes += len(data)
            if self._bytes > MOST_OTHER:
                raise TooMuch
            return super().write(data)
        if self.fault is None:
            try:
                self._append(data)
            except (OSError, sqlite3.Error, TooMuch) as error:
                self.fault = error
                self.discard()
        return len(data)

    def _append(self, data: bytes) -> None:
        if self.file is None:
            head = self._head()
            self.file = self._new_file()
            self.file.append(head, is_head=True)
        self.file.append(data)

    def _head(self) -> bytes:
        command = self._message.command_set
        context = self._association._accepted_cx[cast(int, self._message.context_id)]
        head = BytesIO(bytes(128) + b"DICM")
        head.seek(0, os.SEEK_END)
        meta = create_file_meta(
            sop_class_uid=UID(str(command.AffectedSOPClassUID)),
            sop_instance_uid=UID(str(command.AffectedSOPInstanceUID)),
            transfer_syntax=context.transfer_syntax[0],
        )
        write_file_meta_info(head, meta)  # type: ignore[arg-type]  # it writes to any file
        return head.getvalue()

    def discard(self) -> None:
        """Remove the file, unless the spool has taken it."""
        if self.file:
            self.file.discard()


class SpoolingDimse(DIMSEServiceProvider):
    """Collects the messages of one association.

    A data set's file is removed once its message has been answered, unless the spool has taken it; and also where nobody answers: its
    command is wrong, it did not arrive whole, or the association ended before.
    """

    def __init__(self, association: Association, new_file: NewFile) -> None:
        """Write data sets to the files that `new_file` returns."""
        super().__init__(association)
        self._new_file = new_file
        self._incoming: IncomingFile | None = None
        self._served: object = None
        self._over = False

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message; the one before has been answered, or nobody answers it."""
        _discard(self._served)
        context, message = super().get_msg(block)
        self._served = getattr(message, "DataSet", None)
        return context, message

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Process a piece of a message; one that is too long or damaged, or sent before the last was answered, ends the association."""
        try:
            with silence_of(self.assoc).held():  # a disk may take long to write it
                self._receive(primitive)
        except Exception as error:  # damaged bytes can raise anything in the parser
            _log.warning("an association sent what is no DIMSE message (%s): it is aborted", type(error).__name__)
            self.abandon()
            self.message = None
            self.dul.event_queue.put(INVALID_PDU)

    def _receive(self, primitive: P_DATA) -> None:
        if self.message is None:
            if self.msg_queue.qsize() > 1:
                raise TooMuch
            self.message = DIMSEMessage()
            self._incoming = IncomingFile(self.message, self.assoc, self._new_file)
            self.message.data_set = self._incoming
        if self.message.encoded_command_set.tell() > MOST_COMMAND:
            raise TooMuch
        super().receive_primitive(primitive)
        if not self._is_arriving():
            self._incoming = None  # the message is whole: `get_msg` has it
            if self._over:
                self._discard_waiting()

    def _is_arriving(self) -> bool:
        return self.message is not None

    def abandon(self) -> None:
        """Remove the file of a message that was not received to its end."""
        if self._incoming:
            self._incoming.discard()
            self._incoming = None

    def end(self) -> None:
        """Remove the files of all messages: the association's thread ends, and answers none any more."""
        self._over = True
        _discard(self._served)
        self._discard_waiting()

    def _discard_waiting(self) -> None:
        with suppress(queue.Empty):
            while True:
                _discard(getattr(self.msg_queue.get_nowait()[1], "DataSet", None))


def _discard(data_set: object) -> None:
    if isinstance(data_set, IncomingFile):
        data_set.discard()


class PatientStateMachine(StateMachine):
    """The upper layer's states, in which a PDU at the wrong moment ends its association and not its thread with a traceback."""

    def do_action(self, event: str) -> None:
        """Carry out what an event asks for."""
        try:
            super().do_action(event)
        except Exception as error:
            _log.warning("an association sent a PDU at the wrong moment (%s): it is aborted", type(error).__name__)
            association = self.dul.assoc
            association.is_aborted, association.is_established = True, False
            self.dul.kill_dul()
        if self.current_state in OVER and self.dul.assoc.requestor.primitive is None:
            self.dul.to_user_queue.put(None)  # wakes the association, which waits for its request


class BoundedSocket(AssociationSocket):
    """A socket that refuses a PDU longer than `most_bytes` before it is in memory, and one that does not arrive in `seconds`."""

    def __init__(self, association: Association, client_socket: socket.socket, most_bytes: int, seconds: float) -> None:
        """Wrap a connection."""
        super().__init__(association, client_socket=client_socket)
        self._most, self._seconds = most_bytes, seconds

    def recv(self, nr_bytes: int) -> bytearray:
        """Read that many bytes, or fewer if the peer closes the connection.

        Raises:
            TooMuch: they are more than a PDU may have.
            TimeoutError: they take too long.
        """
        if nr_bytes > self._most:
            raise TooMuch
        received, deadline = bytearray(), time.monotonic() + self._seconds
        while len(received) < nr_bytes:
            if self.socket is None or time.monotonic() > deadline:
                raise TimeoutError
            piece = self.socket.recv(min(PIECE, nr_bytes - len(received)))
            if not piece:
                break
            received += piece
        return received
