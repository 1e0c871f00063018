"""Make a report's documents, once: their bytes and UIDs are what every delivery sends."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset

from echovlm_edge.runtime.client.report import Report
from echovlm_edge.runtime.clinical.diagnostic_report import diagnostic_report
from echovlm_edge.runtime.clinical.report_pdf import encapsulated_pdf, find_font
from echovlm_edge.runtime.clinical.source_images import PATIENT_AND_STUDY, REFERENCES, SourceImage, as_shown
from echovlm_edge.runtime.clinical.structured_report import Predecessor, structured_report
from echovlm_edge.runtime.dicom_node.receiving.header import from_json
from echovlm_edge.runtime.dicom_node.reporting.questions import Question
from echovlm_edge.runtime.dicom_node.reporting.selection import Outcome
from echovlm_edge.runtime.dicom_node.spool.rows import Document, Instance, Study

__all__ = ["Chosen", "DocumentMaker", "find_font", "remarks_of"]


@dataclass(frozen=True)
class Chosen:
    """What a report is about.

    Attributes:
        instances: all images of the study, in order of arrival, with what was decided about each.
        shown: those that the model was shown, in the order in which it was: stills, then cines.
        question: what was asked.
    """

    instances: tuple[Instance, ...]
    shown: tuple[Instance, ...]
    question: Question


class DocumentMaker:
    """Makes the kinds of documents that somebody gets."""

    def __init__(self, kinds: Iterable[str], font: Path | None = None) -> None:
        """Make the documents of some kinds, `sr`, `pdf` and `fhir`; the SR is always made, as it carries the record.

        `font` is that of the PDF, which is not made without.
        """
        self._kinds, self._font = frozenset(kinds), font

    def make(self, study: Study, report: Report, chosen: Chosen, predecessor: Document | None) -> list[Document]:
        """Make a version's documents.

        Args:
            study: the version.
            report: the server's.
            chosen: what it is about.
            predecessor: the last SR that a destination has or may have.

        Raises:
            InvalidInput: there is no text to make a document of.
        """
        language = chosen.question.language
        sources = as_shown([_source(one, place) for place, one in enumerate(chosen.shown, 1)], report.result)
        remarks = remarks_of(study, chosen, predecessor)
        before = None
        if predecessor:
            before = Predecessor(predecessor.sop_class, predecessor.sop_instance, predecessor.series)
        content = structured_report(report.result, sources, language, report.request_id, remarks, before)
        uids = _uids(content)
        documents = [Document("sr", *uids, content, _record(report, chosen, remarks))]
        if self._font and "pdf" in self._kinds:
            pdf = encapsulated_pdf(report.result, sources, language, self._font, report.request_id, remarks)
            documents.append(Document("pdf", *_uids(pdf), pdf))
        if "fhir" in self._kinds:
            fhir = diagnostic_report(report.result, sources, language, report.request_id, remarks, uids[1])
            documents.append(Document("fhir", *uids, fhir))
        return documents


def _uids(content: bytes) -> tuple[str, str, str]:
    """Read the SOP class, instance and series of a document that has just been made."""
    written = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True)
    return str(written.SOPClassUID), str(written.SOPInstanceUID), str(written.SeriesInstanceUID)


def remarks_of(study: Study, chosen: Chosen, predecessor: Document | None) -> list[str]:
    """Say which pictures were chosen and why, which question was asked, and what the document replaces: sentences."""
    remarks = [_pictures(chosen.instances), _question(chosen.question)]
    remarks.append(f"The study was complete by {study.completed_by}.")
    if predecessor:
        remarks.append(f"Version {study.version}: it replaces the report {predecessor.sop_instance}.")
    return remarks


def _pictures(instances: Sequence[Instance]) -> str:
    parts = [f"{len(instances)} {'image was' if len(instances) == 1 else 'images were'} received, numbered by arrival."]
    shown: list[str] = []
    left: list[str] = []
    places = {instance.id: place for place, instance in enumerate(instances, 1)}
    for place, instance in enumerate(instances, 1):
        choice = instance.choice or {}
        outcome, frames = choice.get("outcome"), choice.get("frames", 1)
        if outcome == Outcome.SHOWN:
            shown.append(f"{place} ({frames} frames)" if frames > 1 else str(place))
        elif outcome == Outcome.NEAR_DUPLICATE:
            left.append(f"{place} looks like {places[choice['like']]}")
        elif outcome == Outcome.OTHER_PATIENT:
            left.append(f"{place} states another patient")
        elif outcome == Outcome.REFUSED:
            left.append(f"{place} could not be read")
        else:
            left.append(f"{place} has no room")
    parts.append(f"The model was shown {', '.join(shown)}.")
    if left:
        parts.append(f"Left out: {'; '.join(left)}.")
    return " ".join(parts)


def _question(question: Question) -> str:
    region = f"region {question.region.value}" if question.region else "no region"
    prompt = "a prompt of its own" if question.prompt else "the default prompt"
    by = f"by {', '.join(question.rows)}" if question.rows else "as nothing in the images chose another"
    return f"The question: {region}, language {question.language.value}, {prompt}; {by}."


def _record(report: Report, chosen: Chosen, remarks: Sequence[str]) -> dict[str, object]:
    """What is kept beside the SR: what it would take to ask the same again."""
    question = chosen.question
    return {
        "instances": [[one.sop_instance, (one.choice or {}).get("frames", 1)] for one in chosen.shown],
        "region": question.region.value if question.region else None,
        "language": question.language.value,
        "prompt": question.prompt,
        "token_ids": list(report.token_ids),
        "prompt_tokens": report.usage.prompt_tokens,
        "reused_tokens": report.usage.reused_tokens,
        "first_token_seconds": report.timings.first_token_seconds,
        "request_id": report.request_id,
        "bundle_id": report.bundle_id,
        "remarks": list(remarks),
    }


def _source(instance: Instance, place: int) -> SourceImage:
    """Refer to an instance by the identifiers that it was received with."""
    received, header = from_json(instance.header), Dataset()
    for keyword in (*REFERENCES, *PATIENT_AND_STUDY):
        setattr(header, keyword, received.get(keyword, None) or "")
    return SourceImage(header, (), place)
