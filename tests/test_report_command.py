"""`echovlm-report` and the Python client: every option arrives in the request, every field of the result is printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime import report_command
from echovlm_edge.runtime.client import ReportClient
from echovlm_edge.runtime.request import ImageInput
from tests.dicom_files import png

USAGE = {field.name: 11 * field.number for field in pb.Usage.DESCRIPTOR.fields}  # no two alike, none 0


class Recording(report_pb2_grpc.ReportServiceServicer):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.report = pb.GenerateReportRequest()
        self.added = pb.AddImageRequest()

    def GenerateReport(
        self, request: pb.GenerateReportRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        self.report = request
        yield pb.GenerateEvent(result=pb.Result(text="Done", usage=pb.Usage(**USAGE)))

    def AddImage(self, request: pb.AddImageRequest, context: grpc.ServicerContext) -> pb.AddedImage:
        self.added = request
        return pb.AddedImage(number=1)


@pytest.fixture
def recording() -> Iterator[tuple[Recording, str]]:
    servicer, server = Recording(), grpc.server(ThreadPoolExecutor(1))
    report_pb2_grpc.add_ReportServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, size in (("a.png", 8), ("b.png", 16), ("c.png", 32)):
        (tmp_path / name).write_bytes(png(size, size))
    return sorted(tmp_path.iterdir())


def test_every_image_and_frame_is_sent_however_often_the_option_is_given(
    recording: tuple[Recording, str], files: list[Path]
) -> None:
    servicer, address = recording
    first, second, third = map(str, files)
    words = ["--server", address, "--image", first, "--image", second, third, "--frames", "0,5", "--frames", "9"]
    assert report_command.main(words) == 0
    assert [image.data for image in servicer.report.images] == [file.read_bytes() for file in files]
    assert all(list(image.frames.indices.index) == [0, 5, 9] for image in servicer.report.images)


@pytest.mark.parametrize("allowed", [False, True])
def test_mixed_studies_are_asked_for(recording: tuple[Recording, str], files: list[Path], allowed: bool) -> None:
    servicer, address = recording
    words = ["--server", address, "--image", str(files[0]), *(["--allow-mixed-studies"] if allowed else [])]
    assert report_command.main(words) == 0
    assert servicer.report.options.allow_mixed_studies == allowed
    with ReportClient(address) as client:
        client.add_image("study", ImageInput(b"image"), allow_mixed_studies=allowed)
    assert servicer.added.allow_mixed_studies == allowed and servicer.added.study == "study"


def test_json_has_every_count(
    recording: tuple[Recording, str], files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_command.main(["--server", recording[1], "--image", str(files[0]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"] == USAGE
