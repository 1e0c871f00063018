"""Folders and DICOMDIRs: their images in the order in which they were taken, and nothing else."""

from __future__ import annotations

import io
import os
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid

from echovlm_edge.runtime.client.image_folder import DICOMDIR, find_images
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from tests.support.dicom_files import encode, png, saved, ultrasound

STUDY = {"StudyInstanceUID": "1.2.3", "StudyDate": "20260101", "SeriesInstanceUID": "1.2.3.4", "PatientID": "P1"}


def dicom(**attributes: object) -> bytes:
    return saved(ultrasound(np.zeros((8, 8), np.uint8), "MONOCHROME2", **{**STUDY, **attributes}))


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_images(folder).paths]


def without_pixels(sop_class: str = BasicTextSRStorage, **attributes: object) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    for name, value in {**STUDY, **attributes}.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def dicomdir(*listed: tuple[str, list[str] | str]) -> bytes:
    records = []
    for kind, file_id in (("PATIENT", ""), ("STUDY", ""), ("SERIES", ""), *listed):
        record = Dataset()
        record.DirectoryRecordType = kind
        if file_id:
            record.ReferencedFileID = file_id
        records.append(record)
    return without_pixels(DICOMDIR, DirectoryRecordSequence=records)


def test_dicom_comes_in_instance_order_whatever_files_are_called(tmp_path: Path) -> None:
    in_order = [
        dicom(StudyDate="20251231", StudyInstanceUID="1.2.9", SeriesNumber=7, InstanceNumber=9),
        dicom(SeriesNumber=2, InstanceNumber=2),
        dicom(SeriesNumber=2, InstanceNumber=10),
        dicom(SeriesNumber=10, SeriesInstanceUID="1.2.3.3", InstanceNumber=1),
        dicom(SeriesNumber=11, AcquisitionTime="090000"),
        dicom(SeriesNumber=11, ContentTime="100000"),
    ]
    for number, shuffled in enumerate(list(permutations(range(6)))[::97]):
        folder = written(tmp_path / str(number), {f"{name}": in_order[index] for name, index in enumerate(shuffled)})
        assert [path.read_bytes() for path in find_images(folder).paths] == in_order


def test_pictures_come_by_name_with_numbers_by_value_after_dicom(tmp_path: Path) -> None:
    order = ["a/Img10.png", "a/img2.png", "a/b/img1.png", "z.dcm", "img9.PNG"]
    files = {name: dicom() if name.endswith("dcm") else png(8, 8) for name in order}
    assert names(written(tmp_path, files)) == ["z.dcm", "a/b/img1.png", "a/img2.png", "a/Img10.png", "img9.PNG"]


@pytest.mark.parametrize(
    "data",
    [
        *(encode(Image.new("RGB", (8, 8)), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")),
        b"\0\0\0\x18ftypisom" + bytes(99),
        b"RIFF\xff\0\0\0AVI LIST",
        dicom(),
        dicom()[128 + 4 :],
    ],
    ids=["png", "jpeg", "bmp", "tiff", "webp", "gif", "mp4", "avi", "dicom", "dicom without preamble"],
)
def test_every_kind_is_known_by_its_bytes(tmp_path: Path, data: bytes) -> None:
    assert names(written(tmp_path, {"IM0001": data, "readme.png": b"text"})) == ["IM0001"]
    assert find_images(tmp_path).skipped == 1


def test_what_is_no_image_is_counted_and_what_is_hidden_is_not(tmp_path: Path) -> None:
    files = {
        "a.png": png(8, 8),
        "notes.txt": b"text",
        "empty": b"",
        "report.dcm": without_pixels(),
        ".hidden.png": png(8, 8),
        ".cache/b.png": png(8, 8),
        "DICOMDIR": dicomdir(),
    }
    written(tmp_path, files)
    os.mkfifo(tmp_path / "pipe")  # which would never end
    found = find_images(tmp_path)
    assert [path.name for path in found.paths] == ["a.png"] and found.skipped == 3


def test_a_file_is_itself_whatever_it_is(tmp_path: Path) -> None:
    written(tmp_path, {"text": b"text"})
    assert find_images(tmp_path / "text").paths == (tmp_path / "text",)  # the server says what is wrong with it


@pytest.mark.parametrize("files", [{}, {"a.txt": b"text"}, {"sr": without_pixels(), "b": b""}])
def test_a_folder_without_images_is_one_sentence(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InvalidInput, match=r"The folder .* holds no image") as error:
        find_images(written(tmp_path, files))
    assert not files or f"({len(files)} other file" in str(error.value)


def test_a_dicomdir_gives_its_images_in_its_order(tmp_path: Path) -> None:
    listed = [("IMAGE", ["S1", "B"]), ("SR DOCUMENT", ["S1", "R"]), ("IMAGE", ["S1", "A"]), ("IMAGE", "C")]
    files = {"S1/A": dicom(InstanceNumber=1), "S1/B": dicom(InstanceNumber=2), "C": dicom(), "S1/R": without_pixels()}
    found = find_images(written(tmp_path, {**files, "DICOMDIR": dicomdir(*listed)}) / "DICOMDIR")
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == ["S1/B", "S1/A", "C"] and found.skipped == 1


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ([("IMAGE", ["S1", "A"]), ("IMAGE", ["S1", "B"])], r"lists .*S1/A and 1 more, which is not there: copy"),
        ([("IMAGE", ["..", "A"])], "outside its folder"),
        ([("IMAGE", "/etc/passwd")], "outside its folder"),
        ([], r"The DICOMDIR .* holds no image"),
    ],
)
def test_a_dicomdir_that_cannot_be_followed(tmp_path: Path, listed: list[tuple[str, list[str]]], sentence: str) -> None:
    written(tmp_path, {"disc/DICOMDIR": dicomdir(*listed), "A": dicom()})
    with pytest.raises(InvalidInput, match=sentence):
        find_images(tmp_path / "disc" / "DICOMDIR")


def test_damaged_dicom_is_sent_so_that_the_server_names_it(tmp_path: Path) -> None:
    written(tmp_path, {"a": bytes(128) + b"DICM\xff\xff\xff", "b": dicom()})
    assert "b" in names(tmp_path)


def test_without_pydicom_files_come_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, {"2": dicom(InstanceNumber=1), "10": dicom(InstanceNumber=0), "DICOMDIR": dicomdir()})
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert names(tmp_path) == ["2", "10"]
    with pytest.raises(NotPossibleHere, match="pip install pydicom"):
        find_images(tmp_path / "DICOMDIR")
