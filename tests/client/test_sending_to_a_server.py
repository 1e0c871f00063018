"""Large images on their way through client and server: cut, or uploaded, they are the same pictures as in a small request."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import Event, FrameSelection, GenerationRequest, ImageInput
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import saved, ultrasound

PIXELS = np.random.default_rng(0).integers(0, 4096, (40, 300, 400), np.uint16)
CINE = saved(ultrasound(PIXELS, "MONOCHROME2", NumberOfFrames=40, BitsStored=12, HighBit=11))  # 9 MB


class Showing(DecodingEngine):
    """Keeps the frames that it decodes, before the files that they are of are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[bytes, str]] = []

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.shown = [(frame.pixels.tobytes(), frame.name) for image in request.images for frame in decode_image(image)]
        yield from super().generate(request, stopped)


@pytest.fixture
def served() -> Iterator[tuple[Showing, ReportServer, Connection]]:
    engine = Showing()
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.2, limits=CallLimits(2 << 20)))
    with Connection(server.address) as client:
        yield engine, server, client
    server.stop()


@pytest.mark.parametrize("selection", [FrameSelection(), FrameSelection((30, 2)), FrameSelection((), 3)])
@pytest.mark.parametrize("pydicom", [True, False])
def test_the_same_frames_arrive_cut_or_uploaded(
    served: tuple[Showing, ReportServer, Connection],
    selection: FrameSelection,
    pydicom: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, _, client = served
    image = ImageInput(CINE, name="image 1", selection=selection)
    as_it_is = [(frame.pixels.tobytes(), frame.name) for frame in decode_image(image)]
    if not pydicom:
        monkeypatch.setattr("echovlm_edge.runtime.client.sending.cut_cine", lambda image: None)
    events = list(client.generate(ReportRequest(images=[image])))
    assert events[-1].result.text == "Done"
    assert engine.shown == as_it_is
    (asked,) = engine.requests[0].images
    assert (asked.original is not None) == pydicom


def test_an_upload_is_gone_after_the_call(
    served: tuple[Showing, ReportServer, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, server, client = served
    monkeypatch.setattr("echovlm_edge.runtime.client.sending.cut_cine", lambda image: None)
    with pytest.raises(InvalidInput, match=r"^a\.dcm has no frame 77"):
        list(client.generate(ReportRequest(images=[ImageInput(CINE, name="a.dcm", selection=FrameSelection((77,)))])))
    assert server.uploads.counts() == (0, 0)
    study = client.begin_study()
    assert client.add_image(study, ImageInput(CINE, name="a.dcm")).number == 1
    assert server.uploads.counts() == (0, 0), "the study has the frames"
