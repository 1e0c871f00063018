"""Make a result's documents, which name the patient: who that is is read from the files while they are there, and kept nowhere."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused
from echovlm_edge.runtime.serving.http.form_data.received_form import ReceivedForm
from echovlm_edge.runtime.serving.http.form_data.report_fields import MEDIA_TYPES, Document
from echovlm_edge.runtime.serving.uploads import Uploads

if TYPE_CHECKING:
    from echovlm_edge.runtime.clinical.source_images import SourceImage


class Documents:
    """The documents of one report. What they say of its images is read before the report is written."""

    def __init__(
        self,
        wanted: Collection[Document],
        form: ReceivedForm,
        frames: int,
        uploads: Uploads,
        client: Client,
        param: str,
    ) -> None:
        """Read the headers of the form's files.

        Args:
            wanted: which documents.
            form: the request's.
            frames: evenly spaced ones of each cine that the model is shown; 0: the middle one.
            uploads: have the files.
            client: whose they are.
            param: the field that asks for documents, for errors.

        Raises:
            NotPossibleHere: the extra `clinical` is not installed.
            InvalidInput: a file's header cannot be read, or no document can be about these files.
        """
        self._wanted, self._sources = wanted, list["SourceImage"]()
        if not wanted:
            return
        if "sr" in wanted:
            import echovlm_edge.runtime.clinical.structured_report  # whether it is installed
        if "fhir" in wanted:
            import echovlm_edge.runtime.clinical.diagnostic_report  # noqa: F401
        self._sources = _sources(form, frames, uploads, client)
        if "sr" in wanted and not self._sources:
            raise Refused("A DICOM SR belongs to a study: send at least one DICOM image.", "invalid_value", param)

    def made(self, kind: Document, result: pb.Result, language: Language, request_id: str) -> bytes:
        """Make one document of a result."""
        if kind == "fhir":
            from echovlm_edge.runtime.clinical.diagnostic_report import diagnostic_report

            return diagnostic_report(result, self._sources, language, request_id)
        from echovlm_edge.runtime.clinical.source_images import as_shown
        from echovlm_edge.runtime.clinical.structured_report import structured_report

        return structured_report(result, as_shown(self._sources, result), language, request_id)

    def as_json(self, result: pb.Result, language: Language, request_id: str) -> Mapping[str, Mapping[str, str]]:
        """Make all that are wanted, by their kind, each with its media type and its bytes in base64."""
        return {
            kind: {
                "media_type": MEDIA_TYPES[kind],
                "data": base64.b64encode(self.made(kind, result, language, request_id)).decode(),
            }
            for kind in self._wanted
        }


def _sources(form: ReceivedForm, frames: int, uploads: Uploads, client: Client) -> list[SourceImage]:
    """Read what a document says about its images: who the patient is, and which study."""
    from echovlm_edge.runtime.clinical.source_images import source_images  # an optional dependency

    selection = FrameSelection(evenly_spaced=frames)
    with ExitStack() as in_use:
        images: Sequence[ImageInput] = [
            ImageInput(in_use.enter_context(uploads.use(client, name)), file.media_type, f"image {place}", selection)
            for place, (name, file) in enumerate(zip(form.uploads, form.files, strict=True), 1)
        ]
        return source_images(images)
