"""Write a result as a FHIR R4 DiagnosticReport; needs the extra `clinical` (fhir.resources)."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.clinical.source_images import SourceImage
from echovlm_edge.runtime.clinical.statements import authorship, notes_of_document
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.contracts.tasks import Language

try:
    from fhir.resources.R4B.diagnosticreport import DiagnosticReport  # R4's DiagnosticReport is unchanged in R4B
except ImportError:
    raise NotPossibleHere(f"A FHIR report needs fhir.resources: {install_hint('clinical')}.") from None

# Systems of our own tags. They name what wrote the report, as R4 allows no device as a report's performer.
MODEL, BUNDLE, REVIEW = "urn:echovlm-edge:model", "urn:echovlm-edge:bundle", "urn:echovlm-edge:review"
REQUEST = (
    "urn:echovlm-edge:request"  # the system of a report's identifier: the id that the server's log names its call by
)


def diagnostic_report(
    result: pb.Result,
    sources: Sequence[SourceImage],
    language: Language,
    request_id: str = "",
    remarks: Sequence[str] = (),
    document_uid: str = "",
) -> bytes:
    """Write JSON: status preliminary, notice, model and bundle id in its tags and in its text, studies by their DICOM UIDs.

    The request's id is the report's identifier. The conclusion is the impression, or all of a text without sections; `presentedForm`
    is all of it as plain text, with the notes about pictures and the remarks below. `document_uid` is that of the DICOM document with
    the same contents, and an identifier too.
    """
    author, notes = authorship(result, request_id), [*notes_of_document(result), *remarks]
    shown = "\n\n".join(filter(None, (f"{result.notice} {author}", result.text, "\n".join(notes))))
    report: dict[str, Any] = {
        "resourceType": "DiagnosticReport",
        "meta": {
            "tag": [
                {"system": REVIEW, "code": "not-reviewed", "display": result.notice},
                {"system": MODEL, "code": result.model},
                {"system": BUNDLE, "code": result.bundle_id},
            ]
        },
        "language": language.value,
        "text": {"status": "generated", "div": _narrative(result, author, notes)},
        "status": "preliminary",
        "category": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/v2-0074",
                        "code": "RUS",
                        "display": "Radiology Ultrasound",
                    }
                ]
            }
        ],
        "code": {"coding": [{"system": "http://loinc.org", "code": "18748-4", "display": "Diagnostic imaging study"}]},
        "issued": datetime.now().astimezone().isoformat(timespec="seconds"),
        "conclusion": f"{result.notice} {result.sections.impression or ('' if result.sections.findings else result.text)}".strip(),
        "presentedForm": [
            {
                "contentType": "text/plain; charset=utf-8",
                "language": language.value,
                "data": base64.b64encode(shown.encode()).decode(),
                "title": result.notice,
            }
        ],
    }
    identifiers = [("urn:dicom:uid", f"urn:oid:{document_uid}" if document_uid else ""), (REQUEST, request_id)]
    if any(value for _, value in identifiers):
        report["identifier"] = [{"system": system, "value": value} for system, value in identifiers if value]
    if sources and (patient := str(sources[0].header.PatientID)):
        report["subject"] = {"type": "Patient", "identifier": {"value": patient}}
    if sources:
        studies = dict.fromkeys(str(source.header.StudyInstanceUID) for source in sources)
        report["imagingStudy"] = [
            {"type": "ImagingStudy", "identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}}
            for study in studies
        ]
    checked: DiagnosticReport = DiagnosticReport.model_validate(report)
    return checked.model_dump_json(exclude_none=True, indent=2).encode() + b"\n"


def _narrative(result: pb.Result, author: str, notes: Sequence[str]) -> str:
    lines = [*result.text.splitlines(), *notes]
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line.strip())
    return (
        f'<div xmlns="http://www.w3.org/1999/xhtml"><p><b>{html.escape(result.notice)}</b> {html.escape(author)}</p>'
        f"{paragraphs}</div>"
    )
