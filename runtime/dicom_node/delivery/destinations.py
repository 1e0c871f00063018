"""Where documents go: a PACS by C-STORE, or a folder. Each sends one object and returns once it is acknowledged."""

from __future__ import annotations

import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.dicom_node.peer_address import PeerAddress, peer_address
from echovlm_edge.runtime.dicom_node.spool.rows import Document
from echovlm_edge.runtime.resources.atomic_file import write_whole

_config.STORE_SEND_CHUNKED_DATASET = True  # send a file's data set as it is, without encoding it again

SUCCESS, WARNINGS = 0x0000, (0xB000, 0xB006, 0xB007)  # PS3.4 B.2.3: stored all the same
TIMEOUT_SECONDS = 30.0


class NotDelivered(Exception):
    """An attempt failed: a sentence that says why, without the document's contents."""


class Destination(Protocol):
    """One destination."""

    @property
    def name(self) -> str:
        """As it was given."""
        ...

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of documents that it gets."""
        ...

    def send(self, document: Document) -> None:
        """Send a document; returns once the destination has it.

        Raises:
            NotDelivered: it does not have it, or did not say so.
        """
        ...


@dataclass(frozen=True)
class OwnIdentity:
    """How the node presents itself to destinations.

    Attributes:
        ae_title: its own.
        folder: for a document's file while it is sent.
        tls: for destinations that are given with `tls://`.
    """

    ae_title: str
    folder: Path
    tls: ssl.SSLContext = field(repr=False)


@dataclass(frozen=True)
class StorePeer:
    """A PACS that takes documents by C-STORE."""

    name: str
    kinds: tuple[str, ...]
    own: OwnIdentity
    address: PeerAddress

    def send(self, document: Document) -> None:
        """Send the document in an association of its own."""
        entity = AE(self.own.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = (
            TIMEOUT_SECONDS
        )
        entity.add_requested_context(document.sop_class, ExplicitVRLittleEndian)
        association = self.address.associate(entity, self.own.tls if self.address.encrypted else None)
        if association is None or not association.is_established:
            refused = "rejected the association" if association and association.is_rejected else "cannot be reached"
            raise NotDelivered(f"{self.name} {refused}")
        try:
            if not association.accepted_contexts:
                raise NotDelivered(f"{self.name} does not take documents of this kind")
            with tempfile.NamedTemporaryFile(suffix=".dcm", dir=self.own.folder) as file:
                file.write(document.content)
                file.flush()
                status = association.send_c_store(file.name)
        except (RuntimeError, ValueError, OSError) as error:
            raise NotDelivered(f"{self.name} lost the association ({type(error).__name__})") from None
        finally:
            association.release()
        if "Status" not in status:
            raise NotDelivered(f"{self.name} did not answer")
        if status.Status != SUCCESS and status.Status not in WARNINGS:
            raise NotDelivered(f"{self.name} refused the document with status {status.Status:04X}")


@dataclass(frozen=True)
class Folder:
    """A folder: a file for each document, named by its SOP Instance UID, so that sending it again changes nothing."""

    name: str
    kinds: tuple[str, ...]
    path: Path

    def send(self, document: Document) -> None:
        """Write the file."""
        ending = "json" if document.kind == "fhir" else "dcm"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(self.path / f"{document.sop_instance}.{ending}", document.content, "The document")
        except (OSError, NotPossibleHere) as error:
            raise NotDelivered(
                f"{self.name} cannot be written ({getattr(error, 'strerror', None) or 'see its folder'})"
            ) from None


def destination(given: str, kinds: tuple[str, ...], own: OwnIdentity) -> Destination:
    """Read a destination: `AET@HOST:PORT`, `tls://AET@HOST:PORT`, or a folder's path, which has a slash.

    Raises:
        InvalidInput: it is none of these.
    """
    if address := peer_address(given):
        return StorePeer(given, kinds, own, address)
    if "/" in given and "://" not in given:
        return Folder(given, kinds, Path(given))
    raise InvalidInput(
        f"--destination {given} is none: give AET@HOST:PORT, tls://AET@HOST:PORT, https://…, fhir+https://…, or a folder's path "
        "with a slash."
    )
