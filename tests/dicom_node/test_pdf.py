"""A report as encapsulated PDF: the text in both languages, the notice on each page, and no error for dciodvfy."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.clinical.report_pdf import DEBIANS_FONT, find_font, report_pdf
from echovlm_edge.runtime.clinical.source_images import SourceImage
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tasks import Language
from tests.support.carts import Pacs, running_node, still, store, study_of, write
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(not DEBIANS_FONT.is_file(), reason="needs the Debian package fonts-wqy-microhei")
poppler = pytest.mark.skipif(not shutil.which("pdftotext"), reason="needs the Debian package poppler-utils")
NOTICE = "Draft, not reviewed by a clinician."
CHINESE = "左侧乳腺见低回声实性结节，边缘光整，约18mm。"


def source() -> SourceImage:
    header = Dataset()
    header.PatientName, header.PatientID, header.PatientBirthDate = "Wang^小明", "4711", "19700101"
    header.StudyDate, header.AccessionNumber = "20260102", "ACC-9"
    return SourceImage(header, (), 1)


@poppler
@pytest.mark.parametrize(
    ("language", "finding"), [(Language.EN, "A hypoechoic solid lesion. " * 300), (Language.ZH, CHINESE * 200)]
)
def test_it_prints_both_languages_with_the_notice_on_each_page(
    language: Language, finding: str, tmp_path: Path
) -> None:
    result = pb.Result(text=finding, notice=NOTICE, model="demo", bundle_id="b1")
    result.sections.findings = finding
    path = tmp_path / "report.pdf"
    path.write_bytes(report_pdf(result, source(), language, find_font(None), "r1", ["One image was received."]))
    pages = subprocess.run(["pdftotext", path, "-"], capture_output=True, text=True, check=True).stdout.split("\f")[:-1]
    assert len(pages) > 1 and all(NOTICE in page for page in pages)
    whole = "".join("".join(pages).split())
    assert "".join(finding[:20].split()) in whole and "小明" in whole and "ACC-9" in whole and "1970-01-01" in whole
    fonts = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True).stdout
    assert "WenQuanYi" in fonts and all(" yes yes " in line for line in fonts.splitlines()[2:])  # embedded, as a subset


def test_a_font_without_chinese_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotPossibleHere, match="cannot be read"):
        find_font(tmp_path / "none.ttf")
    import matplotlib

    latin = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    with pytest.raises(NotPossibleHere, match="lacks letters"):
        find_font(latin)


def test_the_node_delivers_it_beside_the_sr(tmp_path: Path, server: str, pacs: Pacs) -> None:
    study = study_of()
    files = write(tmp_path / "in", still(study, 1))
    with running_node(tmp_path / "spool", server, destination=(pacs.name,), pdf=True) as node:
        store(node, files)
        wait_for(
            lambda: (
                node.spool.studies.find(str(study["StudyInstanceUID"])).state == "delivered"
                if pacs.documents()
                else False
            )
        )
    kinds = {document.Modality: document for document in pacs.documents()}
    assert set(kinds) == {"SR", "DOC"}
    pdf = kinds["DOC"]
    assert pdf.EncapsulatedDocument.startswith(b"%PDF") and pdf.PatientID == study["PatientID"]
    assert pdf.SourceInstanceSequence[0].ReferencedSOPInstanceUID == files[0].stem
    if not shutil.which("dciodvfy"):
        pytest.skip("needs the Debian package dicom3tools")
    path = tmp_path / "pdf.dcm"
    path.write_bytes(pacs.received[str(pdf.SOPInstanceUID)][0])
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
    assert "Error" not in done.stderr, done.stderr
