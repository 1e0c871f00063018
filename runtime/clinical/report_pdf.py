"""Write a result as a PDF for printing, and as DICOM Encapsulated PDF about its source images; needs the extra `dicom` (fpdf2).

English and Chinese are set in one embedded font: WenQuanYi Micro Hei (Apache License 2.0, Debian's fonts-wqy-microhei), or another
that the caller gives. Only the glyphs that are used are embedded.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian, generate_uid

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.clinical.source_images import PATIENT_AND_STUDY, SourceImage
from echovlm_edge.runtime.clinical.statements import authorship, notes_of_document
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.contracts.tasks import Language

try:
    from fpdf import FPDF
    from fpdf.enums import XPos, YPos
except ImportError:
    raise NotPossibleHere(f"A PDF needs fpdf2: {install_hint('dicom')}.") from None

DEBIANS_FONT = Path("/usr/share/fonts/truetype/wqy/wqy-microhei.ttc")
MAKER = "EchoVLM Edge"
NEEDED = "Az乳腺"  # letters that a font must have
TEXT, SMALL, TITLE = 11, 8, 15  # points
MARGIN, LINE = 20.0, 5.5  # millimetres
REPORT = Code("18748-4", "LN", "Diagnostic imaging study")

logging.getLogger("fpdf").setLevel(logging.ERROR)
logging.getLogger("fontTools").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Words:
    """The words of a page in one language."""

    title: str
    patient: str
    born: str
    accession: str
    study: str
    findings: str
    impression: str
    about: str
    page: str


WORDS = {
    Language.EN: Words(
        *("Ultrasound report (draft)", "Patient", "born", "Accession number", "Study", "Findings", "Impression"),
        *("About this report", "Page {} of {}"),
    ),
    Language.ZH: Words(
        "超声报告（草稿）",
        "患者",
        "出生日期",
        "检查号",
        "检查日期",
        "超声所见",
        "超声提示",
        "关于本报告",
        "第 {} 页，共 {} 页",
    ),
}


def find_font(path: Path | None) -> Path:
    """Return the font to set reports in: `path`, or Debian's.

    Raises:
        NotPossibleHere: it is not there, or lacks letters of English or Chinese.
    """
    from fontTools.ttLib import TTFont, TTLibError

    font = path or DEBIANS_FONT
    try:
        letters = TTFont(font, fontNumber=0, lazy=True).getBestCmap()
    except (OSError, TTLibError):
        raise NotPossibleHere(
            f"The font {font} cannot be read: install Debian's fonts-wqy-microhei, or give another with --pdf-font."
        ) from None
    if any(ord(letter) not in letters for letter in NEEDED):
        raise NotPossibleHere(f"The font {font} lacks letters of English or Chinese: give another with --pdf-font.")
    return font


class _Page(FPDF):
    """Pages with the notice and the page's number on each."""

    def __init__(self, font: Path, notice: str, words: Words) -> None:
        super().__init__(format="A4")
        self._notice, self._words = notice, words
        self.add_font("report", fname=font)
        self.set_margins(MARGIN, MARGIN, MARGIN)
        self.set_auto_page_break(True, MARGIN + 8)

    def footer(self) -> None:
        """Print the notice and the page's number."""
        self.set_y(-MARGIN)
        self.set_font("report", size=SMALL)
        self.cell(0, LINE, self._notice, align="L")
        self.set_x(MARGIN)
        self.cell(0, LINE, self._words.page.format(self.page_no(), "{nb}"), align="R")


def report_pdf(
    result: pb.Result,
    source: SourceImage,
    language: Language,
    font: Path,
    request_id: str = "",
    remarks: Sequence[str] = (),
) -> bytes:
    """Write a PDF in A4: patient and study of the source image, the sections, and who wrote it; the notice is on each page."""
    words, header = WORDS[language], source.header
    page = _Page(font, result.notice, words)
    page.set_title(words.title)
    page.set_creator(MAKER)
    page.set_lang(language.value)
    page.add_page()
    _line(page, words.title, TITLE)
    name = str(header.PatientName).replace("^", " ").strip()
    born = f", {words.born} {_date(header.PatientBirthDate)}" if header.PatientBirthDate else ""
    _line(page, f"{words.patient}: {name} ({header.PatientID}){born}")
    _line(page, f"{words.study}: {_date(header.StudyDate)}   {words.accession}: {header.AccessionNumber}")
    findings, impression = result.sections.findings, result.sections.impression
    if not findings and not impression:
        findings = result.text
    for heading, text in ((words.findings, findings), (words.impression, impression)):
        if text:
            page.ln(LINE)
            _line(page, heading, TEXT + 2)
            _line(page, text)
    page.ln(LINE)
    _line(page, words.about, TEXT)
    for remark in (f"{result.notice} {authorship(result, request_id)}", *notes_of_document(result), *remarks):
        _line(page, remark, SMALL)
    return bytes(page.output())


def encapsulated_pdf(
    result: pb.Result,
    sources: Sequence[SourceImage],
    language: Language,
    font: Path,
    request_id: str = "",
    remarks: Sequence[str] = (),
) -> bytes:
    """Write a DICOM file with the PDF (PS3.3 A.45.1): patient and study are those of the first image, which it refers to like the SR."""
    first, now = sources[0].header, datetime.now().astimezone()
    content = report_pdf(result, sources[0], language, font, request_id, remarks)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EncapsulatedPDFStorage, generate_uid(prefix=None)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    document.SpecificCharacterSet = "ISO_IR 192"
    document.SOPClassUID, document.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for keyword in PATIENT_AND_STUDY:
        setattr(document, keyword, first.get(keyword))
    document.StudyInstanceUID, document.SeriesInstanceUID = first.StudyInstanceUID, generate_uid(prefix=None)
    document.Modality, document.SeriesNumber, document.InstanceNumber = "DOC", 1, 1
    document.SeriesDescription = result.notice[:64]
    document.Manufacturer, document.ManufacturerModelName = MAKER, result.model[:64]
    document.SoftwareVersions, document.ConversionType = result.bundle_id[:64], "WSD"
    document.ContentDate, document.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    document.AcquisitionDateTime = ""
    document.BurnedInAnnotation, document.VerificationFlag = "YES", "UNVERIFIED"
    document.DocumentTitle = WORDS[language].title
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
        REPORT.value,
        REPORT.scheme_designator,
        REPORT.meaning,
    )
    document.ConceptNameCodeSequence = [code]
    document.SourceInstanceSequence = [_reference(uids) for uids in dict.fromkeys(map(_uids, sources))]
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    document.EncapsulatedDocumentLength = len(content)
    written = io.BytesIO()
    document.save_as(written, enforce_file_format=True)
    return written.getvalue()


def _line(page: FPDF, text: str, size: int = TEXT) -> None:
    page.set_font("report", size=size)
    page.multi_cell(0, size * 0.5, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _date(value: object) -> str:
    text = str(value or "")
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}" if len(text) == 8 else text


def _uids(source: SourceImage) -> tuple[str, str]:
    return str(source.header.SOPClassUID), str(source.header.SOPInstanceUID)


def _reference(uids: tuple[str, str]) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = uids
    return reference
