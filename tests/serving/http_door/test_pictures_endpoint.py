"""`/v1/pictures`: the frames that the model would see, with what was decided about them; read as for a report, and not kept."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Frame, ImageInput
from echovlm_edge.runtime.imaging.decoder import Asker
from echovlm_edge.runtime.serving.http.reports.pictures import MOST_SIDE
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer
from echovlm_edge.runtime.serving.uploads import UploadLimits
from tests.support.dicom_files import png, region, saved, ultrasound
from tests.support.http_door import OPTIONS, http_server
from tests.support.telling_engine import TellingEngine
from tests.support.waiting import wait_for

PICTURES = "/v1/pictures"
Served = tuple[ReportServer, httpx.Client, TellingEngine]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    engine = TellingEngine("A cyst.")
    options = replace(OPTIONS, limits=CallLimits(frames=70), uploads=UploadLimits(32 << 20, max_file_bytes=16 << 20))
    with http_server(engine, options) as (server, client):
        yield server, client, engine


@pytest.fixture(autouse=True)
def nothing_is_kept(served: Served) -> Iterator[None]:
    yield
    server, _, engine = served
    wait_for(lambda: server.uploads.counts() == (0, 0) and server.admission.inside == 0)
    assert engine.requests == []  # the model did not run


def dicom(frames: int = 0, cropped: bool = False) -> bytes:
    shape = (frames, 120, 160, 3) if frames else (120, 160, 3)
    pixels = np.random.default_rng(1).integers(60, 200, shape, dtype=np.uint8)
    dataset = ultrasound(pixels, **({"NumberOfFrames": frames} if frames else {}))
    dataset.PatientID = "P-17"
    if cropped:
        dataset.SequenceOfUltrasoundRegions = [region(40, 20, 139, 99)]
    return saved(dataset)


def picture(shown: dict[str, object]) -> Image.Image:
    url = str(shown["url"])
    assert url.startswith("data:image/jpeg;base64,")
    decoded = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert decoded.size == (shown["width"], shown["height"])
    return decoded


def test_a_cropped_frame_is_shown_as_the_model_sees_it_and_whole(served: Served) -> None:
    _, client, _ = served
    answer = client.post(PICTURES, files=[("file", ("a", dicom(cropped=True))), ("file", ("b", png(80, 60)))])
    cropped, plain = answer.json()["pictures"]
    assert answer.headers["cache-control"] == "no-store" and "P-17" not in answer.text
    assert cropped["box"] == {"left": 40, "top": 20, "right": 140, "bottom": 100} and cropped["image"] == 1
    assert (cropped["width"], cropped["height"]) == (160, 120)
    assert picture(cropped["seen"]).size == (cropped["model_width"], cropped["model_height"]) == (112, 84)
    assert picture(cropped["whole"]).size == (168, 112)  # of the whole frame, at the model's bound
    assert plain["whole"] is None and plain["image"] == 2 and plain["notes"] == []
    assert answer.json()["tokens"] == cropped["tokens"] + plain["tokens"] == 12 + 6
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


class Small(TellingEngine):
    """Has a context of a hundred tokens, and frames of 4 to 50."""

    info = replace(TellingEngine.info, image_tokens=(4, 50))

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        frames = super().read_image(image, before, asker, allow_mixed_studies)
        if not image.crop_to_regions and len(frames) * (image.image_tokens or 50) + 20 > self.info.max_sequence:
            raise InvalidInput("The context does not hold that many tokens.")
        return frames


@pytest.mark.parametrize(("frames", "shown"), [(1, True), (4, True), (9, False)])
def test_whole_frames_are_shown_as_far_as_the_context_holds_them(frames: int, shown: bool) -> None:
    with http_server(Small("")) as (_, client):
        fields = {"frames": str(frames)}
        answer = client.post(PICTURES, files={"file": dicom(frames=9, cropped=True)}, data=fields)
    assert answer.status_code == 200, answer.text
    assert [one["whole"] is not None for one in answer.json()["pictures"]] == [shown] * frames


def test_the_fields_are_those_of_a_report(served: Served) -> None:
    _, client, _ = served
    fields = {"frames": "3", "keep_whole_frame": "true"}
    shown = client.post(PICTURES, files={"file": dicom(frames=9, cropped=True)}, data=fields).json()["pictures"]
    assert [(one["frame"], one["frame_count"]) for one in shown] == [(0, 9), (4, 9), (8, 9)]
    assert all(one["whole"] is None and one["box"]["right"] == 160 for one in shown)


def test_an_answer_is_bounded_by_its_frames(served: Served) -> None:
    _, client, _ = served
    large = png(1600, 1200)
    (shown,) = client.post(PICTURES, files={"file": large}).json()["pictures"]
    assert max(picture(shown["seen"]).size) <= MOST_SIDE
    sixty = client.post(PICTURES, files={"file": dicom(frames=64)}, data={"frames": "60"})
    assert len(sixty.json()["pictures"]) == 60 and len(sixty.content) < 60 * 20_000
    refused = client.post(PICTURES, files={"file": dicom(frames=80)}, data={"frames": "71"})
    assert refused.status_code == 400 and "more than 70" in refused.json()["error"]["message"]


def test_what_hardly_is_ultrasound_is_told(served: Served) -> None:
    _, client, _ = served
    blank = io.BytesIO()
    Image.new("RGB", (80, 60), (90, 90, 90)).save(blank, "PNG")
    (shown,) = client.post(PICTURES, files={"file": blank.getvalue()}).json()["pictures"]
    assert shown["unlike_ultrasound"] is True


@pytest.mark.parametrize(
    ("data", "status", "param"),
    [
        ({"frames": "-1"}, 400, "frames"),
        ({"task": "report"}, 400, "task"),
        ({"image_tokens": "9999999"}, 400, None),
    ],
)
def test_what_cannot_be_is_refused(served: Served, data: dict[str, str], status: int, param: str | None) -> None:
    _, client, _ = served
    answer = client.post(PICTURES, files={"file": png(80, 60)}, data=data)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_no_file_is_nothing_to_show_and_no_picture_is_refused(served: Served) -> None:
    _, client, _ = served
    assert client.post(PICTURES, files={"frames": (None, "1")}).json()["pictures"] == []
    refused = client.post(PICTURES, files={"file": b"GIF89a"})
    assert refused.status_code == 400 and refused.json()["error"]["message"]


def test_another_body_or_method_is_refused(served: Served) -> None:
    _, client, _ = served
    assert client.post("/v1/pictures", json={}).status_code == 415
    got = client.get(PICTURES)
    assert got.status_code == 405 and got.headers["allow"] == "POST"
