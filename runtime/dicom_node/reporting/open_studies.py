"""The studies that the node has open at the server: what was added of each, and how many there may be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from echovlm_edge.runtime.client.report import AddedImage
from echovlm_edge.runtime.client.report_client import END_SECONDS, ReportClient, Study
from echovlm_edge.runtime.contracts.errors import NotOffered, UserError
from echovlm_edge.runtime.contracts.image_path import ImagePath
from echovlm_edge.runtime.contracts.request import FrameSelection
from echovlm_edge.runtime.dicom_node.receiving.header import from_json
from echovlm_edge.runtime.dicom_node.reporting.selection import keeps_whole_frame
from echovlm_edge.runtime.dicom_node.spool.rows import Instance
from echovlm_edge.runtime.dicom_node.spool.rows import Study as StudyRow
from echovlm_edge.runtime.formats.media_types import DICOM


@dataclass
class AtServer:
    """A study that is open at the server: what was added of it, in order."""

    study: Study
    version: int
    stills: dict[int, int] = field(default_factory=dict)  # the image's number there, by the instance
    cines: dict[int, tuple[int, int]] = field(default_factory=dict)  # likewise, and how many frames


class OpenStudies:
    """What the server holds is only a copy of the spool. Threads may share it, one for each study."""

    def __init__(self, client: ReportClient, most: int, call_seconds: float, image_tokens: int | None = None) -> None:
        """Open at most `most` studies at a server; a call may take `call_seconds`, and `image_tokens` bounds the studies' frames."""
        self._client, self._most, self._call_seconds, self._image_tokens = client, most, call_seconds, image_tokens
        self._open: dict[int, AtServer] = {}
        self._allowed: int | None = None

    @property
    def ids(self) -> frozenset[int]:
        """The studies that are open, as far as the node knows."""
        return frozenset(self._open)

    @property
    def places(self) -> int:
        """How many may be open at once: at most half of what the server lets this client open, once it was asked."""
        return self._most if self._allowed is None else min(self._most, max(1, self._allowed // 2))

    def opened(self, study: StudyRow, shown: Callable[[], Iterable[Instance]]) -> AtServer:
        """Return a study; where it is not open in this version it is begun, with the stills that are `shown`."""
        opened = self._open.get(study.id)
        if opened and opened.version == study.version:
            return opened
        self.end(self.give_up(study.id))
        connection = self._client.connection
        if self._allowed is None:
            with suppress(NotOffered):  # by a department's server, or an older one
                self._allowed = connection.list_studies(self._call_seconds).max_studies
        begun = connection.begin_study(self._call_seconds, self._image_tokens)
        opened = AtServer(Study(connection, begun), study.version)
        self._open[study.id] = opened
        for instance in shown():
            opened.stills[instance.id] = self.add(opened, instance).number
        return opened

    def add(self, opened: AtServer, instance: Instance, selection: FrameSelection | None = None) -> AddedImage:
        """Add an instance to a study; a still or cine with a spectrum or a trace is shown whole."""
        whole_frame = keeps_whole_frame(from_json(instance.header))
        name = f"instance {instance.id}"
        path = ImagePath(instance.path, DICOM, name, selection or FrameSelection(), not whole_frame)
        return opened.study.add(path, timeout=self._call_seconds)

    def withdraw(self, opened: AtServer, number: int) -> None:
        """Remove an image from a study."""
        opened.study.withdraw(number, self._call_seconds)

    def give_up(self, study: int) -> AtServer | None:
        """Give up a study's place, as the study is to be begun again later; `end` tells the server."""
        return self._open.pop(study, None)

    def end(self, opened: AtServer | None) -> None:
        """End a study at the server, if there is one; without an answer it expires there."""
        if opened:
            with suppress(UserError):
                self._client.end_study(opened.study.id, END_SECONDS)
