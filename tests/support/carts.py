"""Carts that send simulated studies to a DICOM node, and the PACS that gets its reports."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from echovlm_edge.runtime.dicom_node.node import Node
from echovlm_edge.runtime.dicom_node.peer_address import PeerAddress
from echovlm_edge.runtime.dicom_node.sending import send
from echovlm_edge.runtime.dicom_node.settings import NodeSettings
from tests.support.dicom_files import region, ultrasound

SIDE = 64


def pixels(seed: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Draw a picture whose fingerprint is its own: large random blocks, uint8 [side, side]."""
    blocks = np.random.default_rng(seed).integers(0, 256, (16, 17), dtype=np.uint8)
    rows, columns = np.arange(side) * 16 // side, np.arange(side) * 17 // side
    return blocks[rows][:, columns]


def study_of(patient: str = "ZQX-4711", **attributes: object) -> dict[str, object]:
    """Return the attributes that the instances of a new study share."""
    return {
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "PatientID": patient,
        "PatientName": "Sekret^Patient",
        "PatientBirthDate": "19700101",
        "PatientSex": "F",
        "AccessionNumber": "ACC-99",
        "StudyID": "7",
        "StudyDate": "20260102",
        "StudyTime": "030405",
        "ReferringPhysicianName": "Doctor^Refer",
        "Modality": "US",
        "SequenceOfUltrasoundRegions": [region(0, 0, SIDE - 1, SIDE - 1)],
        **attributes,
    }


def still(study: dict[str, object], seed: int, **attributes: object) -> FileDataset:
    """Make a still of a study."""
    return ultrasound(pixels(seed), "MONOCHROME2", **{**study, "InstanceNumber": seed, **attributes})


def cine(study: dict[str, object], seed: int, frames: int = 6, **attributes: object) -> FileDataset:
    """Make a cine of a study."""
    moving = np.stack([np.roll(pixels(seed), 3 * frame, 1) for frame in range(frames)])
    made = ultrasound(
        moving, "MONOCHROME2", **{**study, "NumberOfFrames": frames, "InstanceNumber": seed, **attributes}
    )
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = UltrasoundMultiFrameImageStorage
    return made


def write(folder: Path, *instances: FileDataset) -> list[Path]:
    """Write instances as files, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for instance in instances:
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
        paths.append(folder / f"{instance.SOPInstanceUID}.dcm")
        instance.save_as(paths[-1], enforce_file_format=True)
    return paths


def store(node: Node | str, files: list[Path], title: str = "CART", called: str = "ECHOVLM") -> dict[Path, int]:
    """Send files in one association; returns those that were refused, with their statuses."""
    address = node if isinstance(node, str) else node.address
    host, _, port = address.rpartition(":")
    return send(files, PeerAddress(called, host, int(port)), title)


@contextmanager
def running_node(spool: Path, server: str, **options: Any) -> Iterator[Node]:
    """Run a node in this process, on a free port of loopback."""
    fast = {"quiet_seconds": 0.4, "max_new_tokens": 8, "max_rate": 10_000, "reserve_mb": 0}
    node = Node(NodeSettings(**{"spool": spool, "listen": "127.0.0.1:0", "server": server, **fast, **options}))
    try:
        yield node
    finally:
        node.close()


class Pacs:
    """A storage SCP that keeps what it is sent.

    Attributes:
        received: the data sets' bytes by SOP Instance UID, one for each time that they came.
        status: that it answers with.
        title, port: its AE title, and the port that it listens on while it runs.
    """

    def __init__(self, title: str = "PACS") -> None:
        """Start."""
        self.title, self.port = title, 0
        self.received: dict[str, list[bytes]] = {}
        self.status = 0x0000
        self._lock = threading.Lock()
        self.start()

    @property
    def name(self) -> str:
        """Name it as a destination."""
        return f"{self.title}@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        entity = AE(self.title)
        for sop_class in (BasicTextSRStorage, EncapsulatedPDFStorage):
            entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
        entity.add_supported_context(Verification)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)  # type: ignore[arg-type]
        assert self._server
        self.port = self._server.server_address[1]

    def stop(self) -> None:
        """Stop listening."""
        assert self._server
        self._server.shutdown()

    def documents(self, study: object = None) -> list[Dataset]:
        """Read the documents that it has, of one study or of all, in the order in which they came."""
        with self._lock:
            read = [_dataset(contents[0]) for contents in self.received.values()]
        return [one for one in read if study is None or one.StudyInstanceUID == study]

    def _store(self, event: evt.Event) -> int:
        if self.status == 0:
            content = event.encoded_dataset()
            with self._lock:
                self.received.setdefault(str(event.request.AffectedSOPInstanceUID), []).append(content)
        return self.status


@contextmanager
def running_pacs() -> Iterator[Pacs]:
    """Run a PACS."""
    pacs = Pacs()
    try:
        yield pacs
    finally:
        pacs.stop()


def _dataset(content: bytes) -> Dataset:
    from io import BytesIO

    return pydicom.dcmread(BytesIO(content))


def texts_of(document: Dataset) -> dict[str, list[str]]:
    """Collect the texts of an SR by the meaning of their concept names."""
    found: dict[str, list[str]] = {}
    todo = list(document.ContentSequence)
    while todo:
        item = todo.pop(0)
        if item.ValueType == "TEXT":
            found.setdefault(item.ConceptNameCodeSequence[0].CodeMeaning, []).append(item.TextValue)
        todo += list(item.get("ContentSequence", []))
    return found
