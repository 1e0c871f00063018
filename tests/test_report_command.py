"""`echovlm-report` and the Python client: every option arrives in the request, every field of the result is printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from echovlm_edge.runtime import report_command
from echovlm_edge.runtime.client import ReportClient
from echovlm_edge.runtime.request import ImageInput
from tests.dicom_files import png
from tests.recording_service import USAGE, Recording, recording_service


@pytest.fixture
def recording() -> Iterator[tuple[Recording, str]]:
    with recording_service() as found:
        yield found


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
