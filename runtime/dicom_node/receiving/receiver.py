"""Answer C-STORE: an instance is in the spool before its sender is told that it arrived."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.dicom_node.audit import Audit
from echovlm_edge.runtime.dicom_node.receiving.activity import Activity
from echovlm_edge.runtime.dicom_node.receiving.header import read_header
from echovlm_edge.runtime.dicom_node.receiving.incoming import IncomingFile
from echovlm_edge.runtime.dicom_node.receiving.received_file import ReceivedFile, Room, TooMuch
from echovlm_edge.runtime.dicom_node.spool.arrivals import Stored
from echovlm_edge.runtime.dicom_node.spool.rows import Arrival
from echovlm_edge.runtime.dicom_node.spool.spool import Spool

# PS3.4 B.2.3 and PS3.7 annex C.
SUCCESS, NOT_SUPPORTED, OUT_OF_RESOURCES, NOT_MATCHING, NOT_UNDERSTOOD = 0x0000, 0x0122, 0xA700, 0xA900, 0xC000
FULL, TOO_LARGE = "the spool or its disk is full", "it is larger than an instance may be"
AUDITED = {
    Stored.NEW: "received",
    Stored.AGAIN: "received again",
    Stored.DIFFERENT: "received again with other bytes, the first is kept",
}
LONGEST_PAUSE = 5.0  # seconds that an instance's answer is delayed to keep a sender below its rate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReceiverLimits:
    """Limits of what is taken in.

    Attributes:
        spool_bytes: of everything in the spool.
        reserve_bytes: of the disk that stay free, so that what is owed can be written.
        instance_bytes: of one instance.
        rate: instances a second of one AE title.
        other_classes: whether instances that are no images are kept.
    """

    spool_bytes: int
    reserve_bytes: int
    instance_bytes: int
    rate: float
    other_classes: bool = False


@dataclass(frozen=True)
class Taken:
    """What became of an instance: the status for its sender, and its UIDs as far as they could be read."""

    status: int
    sop_class: str = ""
    sop_instance: str = field(default="", repr=False)


class Receiver:
    """Puts instances into the spool, however they come. Threads may share it.

    Args:
        spool: where they are kept.
        activity: is told about each.
        audit: likewise.
        limits: of what is taken in.
        make_room: empties what has been delivered; called where the spool is full.
    """

    def __init__(
        self, spool: Spool, activity: Activity, audit: Audit, limits: ReceiverLimits, make_room: Callable[[], None]
    ) -> None:
        self._spool, self._activity, self._audit = spool, activity, audit
        self._limits = limits
        self._room = Room(spool.arrivals, limits.spool_bytes, limits.reserve_bytes, make_room)
        self._lock = threading.Lock()
        self._due: dict[str, float] = {}  # by AE title: when its next instance is due
        self.counts = dict.fromkeys((*Stored, "refused"), 0)

    def store(self, event: evt.Event) -> int:
        """Answer a C-STORE; returns its status."""
        request = cast(C_STORE, event.request)
        incoming = request.DataSet
        sender = _title(event.assoc)
        address = str(event.assoc.requestor.address_info.address) if event.assoc.requestor.address_info else ""
        if not isinstance(incoming, IncomingFile) or (incoming.file is None and incoming.fault is None):
            return self.refused(NOT_UNDERSTOOD, sender, address, "no data set").status
        try:
            if isinstance(incoming.fault, TooMuch):
                return self.refused(OUT_OF_RESOURCES, sender, address, TOO_LARGE).status
            if incoming.fault or incoming.file is None:
                return self.refused(OUT_OF_RESOURCES, sender, address, FULL).status
            stated = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
            status = self.take(incoming.file, sender, address, stated, event.assoc).status
        finally:
            incoming.discard()
        self._slow_down(sender)
        return status

    def take(
        self,
        file: ReceivedFile,
        sender: str,
        address: str,
        stated: tuple[str, str] | None = None,
        association: Association | None = None,
        study: str = "",
    ) -> Taken:
        """Put an instance into the spool; returns what became of it. Its file is removed otherwise.

        Args:
            file: the instance, written to its end.
            sender: its AE title.
            address: of the sender.
            stated: SOP class and instance that the sender named; None if it named none.
            association: that it came by.
            study: the UID of the study that it has to be of; empty for any.
        """
        try:
            return self._take(file.path, file.finish(), sender, address, stated, association, study)
        except (OSError, sqlite3.Error):
            return self.refused(OUT_OF_RESOURCES, sender, address, FULL)
        finally:
            file.discard()

    def _take(
        self,
        path: Path,
        digest: bytes,
        sender: str,
        address: str,
        stated: tuple[str, str] | None,
        association: Association | None,
        study: str,
    ) -> Taken:
        try:
            header = read_header(path)
        except InvalidInput as error:
            return self.refused(NOT_UNDERSTOOD, sender, address, str(error))
        if study not in ("", header.study_uid):
            return self.refused(NOT_MATCHING, sender, address, "it is of another study than stated")
        if stated and stated != (header.sop_class, header.sop_instance):
            return self.refused(NOT_MATCHING, sender, address, "its SOP class or instance is another than stated")
        if header.kind == "other" and not self._limits.other_classes:
            return self.refused(NOT_SUPPORTED, sender, address, "it is no image")
        uids = header.study_uid, header.sop_instance
        self._activity.touch(
            header.study_uid, association
        )  # before, so that nobody takes the study to be quiet meanwhile
        arrival = Arrival(path, *uids, header.sop_class, digest, sender, header.kind, header.as_json())
        stored = self._spool.arrivals.store(arrival)
        self._activity.touch(header.study_uid, association)
        self._count(stored)
        self._audit.write(AUDITED[stored], sender, address, *uids)
        if stored is Stored.DIFFERENT:
            _log.warning("an instance came again with other bytes: the first is kept", extra={"ae_title": sender})
        return Taken(SUCCESS, header.sop_class, header.sop_instance)

    def new_file(self) -> ReceivedFile:
        """Return a file to receive an instance into; raises as `ReceivedFile`."""
        return ReceivedFile(self._spool.arrivals.new_file(), self._room, self._limits.instance_bytes)

    def refused(self, status: int, sender: str, address: str, reason: str) -> Taken:
        """Count, log and audit a refusal; returns it."""
        self._count("refused")
        _log.warning("an instance was refused with status %04X: %s", status, reason, extra={"ae_title": sender})
        self._audit.write("refused", sender, address, status=f"{status:04X}", reason=reason)
        return Taken(status)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def _slow_down(self, sender: str) -> None:
        """Delay the answer, and so the next instance, where a sender is above its rate."""
        with self._lock:
            now = time.monotonic()
            due = max(self._due.get(sender, 0.0), now - 1.0) + 1.0 / self._limits.rate
            self._due = {title: at for title, at in self._due.items() if at > now - 1.0} | {sender: due}
        if due > now:
            time.sleep(min(due - now, LONGEST_PAUSE))


def _title(association: Association) -> str:
    """Return the sender's AE title, in printable characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(association.requestor.ae_title)).strip()
