"""Write a result as a DICOM Basic Text SR that refers to its source images; needs the extra `clinical` (highdicom)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import NAMESPACE_URL, uuid5

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.clinical.source_images import PATIENT_AND_STUDY, SourceImage
from echovlm_edge.runtime.clinical.statements import authorship, notes_of_document
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.contracts.tasks import Language

try:
    from highdicom import SOPClass
    from highdicom.sr import (
        CodeContentItem,
        CodedConcept,
        ContainerContentItem,
        ContentItem,
        ContentSequence,
        ImageContentItem,
        TextContentItem,
        UIDRefContentItem,
    )
    from highdicom.sr.utils import collect_evidence
except ImportError:
    raise NotPossibleHere(f"A DICOM SR needs highdicom: {install_hint('clinical')}.") from None
from pydicom.dataset import Dataset
from pydicom.uid import UID, BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid

MAKER = "EchoVLM Edge"
LANGUAGES = {
    Language.EN: CodedConcept("en", "RFC5646", "English"),
    Language.ZH: CodedConcept("zh", "RFC5646", "Chinese"),
}
# PS3.16: TID 2000 Basic Diagnostic Imaging Report, with TID 1204 (language) and TID 1004 (a device observes).
REPORT = CodedConcept("18748-4", "LN", "Diagnostic imaging study")
LANGUAGE = CodedConcept("121049", "DCM", "Language of Content Item and Descendants")
OBSERVER_TYPE = CodedConcept("121005", "DCM", "Observer Type")
DEVICE = CodedConcept("121007", "DCM", "Device")
DEVICE_UID = CodedConcept("121012", "DCM", "Device Observer UID")
DEVICE_NAME = CodedConcept("121013", "DCM", "Device Observer Name")
DEVICE_MAKER = CodedConcept("121014", "DCM", "Device Observer Manufacturer")
DEVICE_MODEL = CodedConcept("121015", "DCM", "Device Observer Model Name")
COMMENT = CodedConcept("121106", "DCM", "Comment")
FINDINGS, FINDING = CodedConcept("121070", "DCM", "Findings"), CodedConcept("121071", "DCM", "Finding")
IMPRESSIONS, IMPRESSION = CodedConcept("121072", "DCM", "Impressions"), CodedConcept("121073", "DCM", "Impression")
SOURCE = CodedConcept("260753009", "SCT", "Source")
LONG_STRING = 64  # characters that an LO may have


@dataclass(frozen=True)
class Predecessor:
    """The document of the same study that a new one replaces: its UIDs."""

    sop_class: str
    sop_instance: str = field(repr=False)
    series: str = field(repr=False)


def structured_report(
    result: pb.Result,
    sources: Sequence[SourceImage],
    language: Language,
    request_id: str = "",
    remarks: Sequence[str] = (),
    predecessor: Predecessor | None = None,
) -> bytes:
    """Write a DICOM file: patient and study are those of the first image, the flags say partial, unverified and preliminary.

    Findings and impression are in their sections; a text without headings is in the first one. One comment has the notice, the
    model, the bundle's id and the request's; each note about a picture, and each remark, is a comment of its own.

    Raises:
        InvalidInput: there is no DICOM image to refer to, or no text.
    """
    if not sources:
        raise InvalidInput("A DICOM SR belongs to a study: send at least one DICOM image.")
    if not result.text.strip():
        raise InvalidInput("There is no text to make a DICOM SR of.")
    first = sources[0].header
    uid, now = generate_uid(prefix=None), datetime.now().astimezone()
    document = SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=generate_uid(prefix=None),
        series_number=1,
        sop_instance_uid=uid,
        sop_class_uid=BasicTextSRStorage,
        instance_number=1,
        modality="SR",
        manufacturer=MAKER,
        manufacturer_model_name=result.model[:LONG_STRING],
        software_versions=result.bundle_id[:LONG_STRING],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=result.notice[:LONG_STRING],
        content_date=now.date(),
        content_time=now.time(),
        specific_character_set="ISO_IR 192",
    )
    for keyword in PATIENT_AND_STUDY:
        setattr(document, keyword, first.get(keyword))
    document.CompletionFlag = "PARTIAL"
    if result.finish_reason == pb.FINISH_REASON_LENGTH:
        document.CompletionFlagDescription = "The text ends at its limit of tokens."
    document.VerificationFlag, document.PreliminaryFlag = "UNVERIFIED", "PRELIMINARY"
    document.PerformedProcedureCodeSequence = []
    document.ReferencedPerformedProcedureStepSequence = []
    root = ContainerContentItem(REPORT, is_content_continuous=False, template_id="2000")
    root.ContentSequence = ContentSequence(_content(result, sources, language, request_id, remarks))
    document.update(root)
    same_study, others = collect_evidence([source.header for source in sources], root, first.StudyInstanceUID)
    document.CurrentRequestedProcedureEvidenceSequence = same_study
    if others:
        document.PertinentOtherEvidenceSequence = others
    if predecessor:
        document.PredecessorDocumentsSequence = [_reference(predecessor, first.StudyInstanceUID)]
    written = io.BytesIO()
    document.save_as(written, enforce_file_format=True)
    return written.getvalue()


def _reference(document: Predecessor, study: str) -> Dataset:
    """Refer to a document by study, series and instance (PS3.3 table 10-3b)."""
    reference, series, instance = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = document.sop_class, document.sop_instance
    series.SeriesInstanceUID, series.ReferencedSOPSequence = document.series, [instance]
    reference.StudyInstanceUID, reference.ReferencedSeriesSequence = study, [series]
    return reference


def _content(
    result: pb.Result, sources: Sequence[SourceImage], language: Language, request_id: str, remarks: Sequence[str]
) -> list[ContentItem]:
    context, contains = "HAS OBS CONTEXT", "CONTAINS"
    findings, impression = result.sections.findings, result.sections.impression
    if not findings and not impression:
        findings = result.text
    items: list[ContentItem] = [
        CodeContentItem(LANGUAGE, LANGUAGES[language], "HAS CONCEPT MOD"),
        CodeContentItem(OBSERVER_TYPE, DEVICE, context),
        UIDRefContentItem(DEVICE_UID, UID(f"2.25.{uuid5(NAMESPACE_URL, result.bundle_id).int}"), context),
        TextContentItem(DEVICE_NAME, f"bundle {result.bundle_id}", context),
        TextContentItem(DEVICE_MAKER, MAKER, context),
        TextContentItem(DEVICE_MODEL, result.model, context),
        TextContentItem(COMMENT, f"{result.notice} {authorship(result, request_id)}", contains),
        *(TextContentItem(COMMENT, note, contains) for note in (*notes_of_document(result), *remarks)),
    ]
    images: list[ContentItem] = [
        ImageContentItem(
            SOURCE,
            source.header.SOPClassUID,
            source.header.SOPInstanceUID,
            list(source.frames) or None,
            relationship_type=contains,
        )
        for source in _distinct(sources)
    ]
    if not findings:
        items += images
    for heading, name, text, shown in (
        (FINDINGS, FINDING, findings, images),
        (IMPRESSIONS, IMPRESSION, impression, []),
    ):
        if text:
            section = ContainerContentItem(heading, is_content_continuous=False, relationship_type=contains)
            section.ContentSequence = ContentSequence([TextContentItem(name, text, contains), *shown])
            items.append(section)
    return items


def _distinct(sources: Sequence[SourceImage]) -> list[SourceImage]:
    """List each image once, with all frames that were shown of it."""
    merged: dict[str, SourceImage] = {}
    for source in sources:
        before = merged.get(source.header.SOPInstanceUID)
        frames = {*source.frames, *(before.frames if before else ())}
        merged[source.header.SOPInstanceUID] = replace(source, frames=tuple(sorted(frames)))
    return list(merged.values())
