"""How a client sends large images: cines cut, small files in the request, large ones by an upload that is forgotten afterwards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grpc
import numpy as np
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.wire.attempts import Retries
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, UserError
from echovlm_edge.runtime.contracts.image_path import ImagePath, SentImage
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from tests.support.dicom_files import png, saved, ultrasound
from tests.support.recording_service import Recording, recording_service

MB = 1 << 20


@pytest.fixture
def service() -> Iterator[tuple[Recording, str]]:
    with recording_service() as found:
        yield found


def send(address: str, *images: SentImage, retries: int = 1) -> None:
    with Connection(address, retries=Retries(retries)) as client:
        assert [event.result.text for event in client.generate(ReportRequest(images=images))][-1] == "Done"


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@cache
def cine(frames: int = 20, side: int = 400) -> bytes:
    pixels = np.arange(frames, dtype=np.uint8)[:, None, None].repeat(side, 1).repeat(side, 2)
    return saved(ultrasound(pixels, "MONOCHROME2", NumberOfFrames=frames, PatientID="P1"))


def test_what_is_plainly_small_is_sent_without_a_question(service: tuple[Recording, str], tmp_path: Path) -> None:
    recording, address = service
    (tmp_path / "a.dcm").write_bytes(cine(5, 28))
    send(address, ImageInput(png(8, 8)), ImagePath(tmp_path / "a.dcm"))
    assert recording.calls == ["GenerateReport"]
    assert [image.data for image in recording.report.images] == [png(8, 8), cine(5, 28)]


@pytest.mark.parametrize("kind", ["bytes", "path", "memory file"])
def test_a_large_cine_is_cut_to_the_frames_asked_for(service: tuple[Recording, str], tmp_path: Path, kind: str) -> None:
    recording, address = service
    (tmp_path / "a.dcm").write_bytes(cine())
    chosen = FrameSelection((7, 3))
    image: SentImage = ImagePath(tmp_path / "a.dcm", selection=chosen, crop_to_regions=False)
    if kind != "path":
        data = cine() if kind == "bytes" else MemoryFile.of([cine()])
        image = ImageInput(data, selection=chosen, crop_to_regions=False)
    send(address, image)
    (sent,) = recording.report.images
    assert recording.calls == ["GenerateReport"], "what is small once it is cut needs no question"
    assert len(sent.data) < 400 * 400 * 2 + 2000 and sent.keep_whole_frame
    assert sent.original == pb.OriginalFrames(index=[7, 3], count=20)
    assert bytes([7]) * 400 * 400 + bytes([3]) * 400 * 400 in sent.data


def test_what_does_not_fit_is_uploaded_in_parts_and_forgotten(service: tuple[Recording, str], tmp_path: Path) -> None:
    recording, address = service
    large, middle, small = random_bytes(6 * MB + 1), random_bytes(2 * MB), png(8, 8)
    (tmp_path / "large.avi").write_bytes(large)
    send(address, ImagePath(tmp_path / "large.avi"), ImageInput(middle), ImageInput(small), ImageInput(middle[:MB]))
    first, *others = recording.report.images
    assert recording.uploads == {first.upload: large} and not first.data
    assert max(recording.parts) == MB and len(recording.parts) == 7
    assert [image.data for image in others] == [middle, small, middle[:MB]]
    assert recording.calls == ["GetModelInfo", "Upload", "GenerateReport", f"forget {first.upload}"]


@pytest.mark.parametrize("sizes", [[MB] * 5, [2 * MB, 2 * MB, 2 * MB], [4 * MB - 40, 10, 10], [4 * MB + 1]])
def test_a_request_is_never_larger_than_the_server_takes(service: tuple[Recording, str], sizes: list[int]) -> None:
    recording, address = service
    send(address, *(ImageInput(random_bytes(size)) for size in sizes))
    assert recording.report.ByteSize() <= 4 * MB
    came = [recording.uploads.get(image.upload, image.data) for image in recording.report.images]
    assert came == [random_bytes(size) for size in sizes]
    assert len(recording.uploads) == recording.calls.count("Upload")


def test_the_limits_are_asked_for_once(service: tuple[Recording, str]) -> None:
    recording, address = service
    with Connection(address) as client:
        for _ in range(2):
            list(client.generate(ReportRequest(images=[ImageInput(random_bytes(5 * MB))])))
        client.add_image("study", ImageInput(random_bytes(5 * MB)))
    assert recording.calls.count("GetModelInfo") == 1
    assert recording.calls[-3:] == ["Upload", "AddImage", "forget upload 2"]
    assert recording.added.image.upload == "upload 2" and recording.added.study == "study"


def test_an_upload_is_forgotten_when_the_call_is_given_up(service: tuple[Recording, str]) -> None:
    recording, address = service
    with Connection(address) as client:
        events = client.generate(ReportRequest(images=[ImageInput(random_bytes(5 * MB))]))
        next(events)
        events.close()  # type: ignore[attr-defined]
    assert recording.calls[-1] == "forget upload 0"


def test_progress_counts_what_is_uploaded(service: tuple[Recording, str]) -> None:
    _, address = service
    told: list[tuple[int, int]] = []
    with Connection(address) as client:
        images = [ImageInput(random_bytes(5 * MB)), ImageInput(random_bytes(6 * MB))]
        list(client.generate(ReportRequest(images=images), progress=lambda sent, total: told.append((sent, total))))
    assert told == [(sent * MB, 11 * MB) for sent in range(1, 12)]


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
def test_a_refused_upload_begins_again_at_its_start(service: tuple[Recording, str], code: grpc.StatusCode) -> None:
    recording, address = service
    recording.refusals = [code]
    send(address, ImageInput(random_bytes(5 * MB)), retries=2)
    assert list(recording.uploads.values()) == [random_bytes(5 * MB)]
    recording.refusals = [code]
    with pytest.raises(UserError):
        send(address, ImageInput(random_bytes(5 * MB)))


def test_a_file_that_changes_meanwhile_is_not_reported_about(
    service: tuple[Recording, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, address = service
    path = tmp_path / "a.avi"
    path.write_bytes(random_bytes(5 * MB))
    monkeypatch.setattr("echovlm_edge.runtime.client.sending.size_of", lambda image: 6 * MB)
    with pytest.raises(InvalidInput, match=r"a\.avi changed while it was sent"):
        send(address, ImagePath(path))
    assert recording.calls[-1] == "forget upload 0" and "GenerateReport" not in recording.calls


def test_a_server_without_uploads_is_one_sentence(service: tuple[Recording, str]) -> None:
    recording, address = service
    video = ImageInput(random_bytes(5 * MB + 1), name="a.avi")
    sentence = (
        r"^a\.avi has 6 MB, more than fits in a request .* takes no uploads: send a smaller file, .* --upload-mb .*\.$"
    )
    recording.refusals = [grpc.StatusCode.UNIMPLEMENTED]
    with pytest.raises(NotPossibleHere, match=sentence):
        send(address, video)
    recording.limits.max_upload_bytes = 0
    with pytest.raises(NotPossibleHere, match=sentence):
        send(address, video)
    assert recording.calls.count("Upload") == 1 and "GenerateReport" not in recording.calls


def test_too_large_for_an_upload_names_both_sizes(
    service: tuple[Recording, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording, address = service
    recording.limits.max_upload_bytes = 5 * MB
    with pytest.raises(NotPossibleHere, match=r"^a\.avi has 7 MB, .* up to 5 MB: send a smaller file"):
        send(address, ImageInput(random_bytes(6 * MB + 1), name="a.avi"))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(NotPossibleHere, match=r"^a\.dcm has 7 MB, .*: install pydicom here"):
        send(address, ImageInput(cine(40), name="a.dcm"))
    assert "Upload" not in recording.calls


def test_too_many_images_are_refused_before_anything_is_sent(service: tuple[Recording, str]) -> None:
    recording, address = service
    with pytest.raises(InvalidInput, match=r"^There are 65 images, more than the server's 64: send fewer\.$"):
        send(address, *[ImageInput(png(8, 8))] * 65)
    assert recording.calls == ["GetModelInfo"]


def test_a_file_that_cannot_be_read_is_one_sentence(service: tuple[Recording, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"a\.dcm cannot be read \(No such file or directory\): "):
        send(service[1], ImagePath(tmp_path / "a.dcm"))


def test_without_pydicom_a_cine_is_sent_whole(service: tuple[Recording, str], monkeypatch: pytest.MonkeyPatch) -> None:
    recording, address = service
    monkeypatch.setitem(sys.modules, "pydicom", None)
    send(address, ImageInput(cine(), selection=FrameSelection((7,))), ImageInput(cine(40)))
    small, large = recording.report.images
    assert small.data == cine() and list(small.frames.indices.index) == [7] and not small.HasField("original")
    assert recording.uploads[large.upload] == cine(40)


def test_a_client_needs_neither_the_engine_nor_what_decodes(tmp_path: Path) -> None:
    program = """
import sys
for name in ("onnxruntime", "PIL", "tokenizers", "pydantic", "jinja2", "pylibjpeg"):
    sys.modules[name] = None
from echovlm_edge.runtime.client.wire import connection as client
from echovlm_edge.runtime.client import report_command
assert "pydicom" not in sys.modules, "whoever sends pictures needs no pydicom"
from pathlib import Path
from echovlm_edge.runtime.client.cine_cutting import cut_cine
from echovlm_edge.runtime.contracts.image_path import ImagePath
print(cut_cine(ImagePath(Path(sys.argv[1]))).original.count)
assert not [name for name in sys.modules if name.startswith("echovlm_edge.runtime.engine.report_engine")]
"""
    (tmp_path / "a.dcm").write_bytes(cine())
    asked = [sys.executable, "-c", program, str(tmp_path / "a.dcm")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.stdout == "20\n", done.stderr
