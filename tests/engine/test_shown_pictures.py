"""What the model was shown is listed with every result: each frame, in order, with its place in its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.request import (
    Box,
    Examination,
    FrameSelection,
    ImageInput,
    Sampling,
    Source,
    Window,
)
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox
from echovlm_edge.runtime.imaging.sandbox.sources import MOST_NOTES, believed, described
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.dicom_files import png, region, saved, ultrasound

CINE = saved(
    ultrasound(
        np.random.default_rng(0).integers(0, 256, (6, 90, 120), dtype=np.uint8),
        "MONOCHROME2",
        NumberOfFrames=6,
        SequenceOfUltrasoundRegions=[region(10, 20, 109, 79)],
    )
)


@pytest.fixture(scope="module")
def client(golden_bundle: Path) -> Iterator[Connection]:
    sandbox = DecodeSandbox()
    engine = ReportEngine.open(golden_bundle, image_decoder=sandbox)
    server = ReportServer(engine, ServerOptions("127.0.0.1:0"))
    with Connection(server.address) as client:
        yield client
    server.stop()
    engine.close()
    sandbox.close()


def result(client: Connection, request: ReportRequest) -> pb.Result:
    *_, last = client.generate(request)
    return last.result


def test_every_frame_of_a_call(client: Connection) -> None:
    images = [ImageInput(png(100, 60)), ImageInput(CINE, selection=FrameSelection((5, 1)))]
    answer = result(client, ReportRequest(images=images, sampling=Sampling(2)))
    assert [(shown.image, shown.frame, shown.frame_count) for shown in answer.pictures] == [
        (1, 0, 1),
        (2, 5, 6),
        (2, 1, 6),
    ]
    still, cine, _ = answer.pictures
    assert (still.width, still.height, still.box) == (100, 60, pb.Box(right=100, bottom=60))
    assert (cine.width, cine.height, cine.box) == (120, 90, pb.Box(left=10, top=20, right=110, bottom=80))
    assert sum(shown.tokens for shown in answer.pictures) == answer.usage.image_tokens
    for shown in answer.pictures:
        assert shown.tokens == shown.model_width * shown.model_height // 28**2


def test_a_studys_images_keep_their_numbers(client: Connection) -> None:
    study = client.begin_study()
    client.add_image(study, ImageInput(png(60, 60)))
    added = client._stub.AddImage(
        pb.AddImageRequest(
            study=study,
            image=pb.Image(data=CINE, frames=pb.FrameSelection(evenly_spaced=2)),
        )
    )
    assert [(shown.study_image, shown.frame) for shown in added.pictures] == [(2, 0), (2, 5)]
    client.withdraw_image(study, 1)
    answer = result(client, ReportRequest(images=[ImageInput(png(80, 60))], study=study, sampling=Sampling(2)))
    assert [shown.WhichOneof("file") for shown in answer.pictures] == ["study_image", "study_image", "image"]
    assert list(answer.pictures[:2]) == list(added.pictures)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    (left, right), (top, bottom) = (sorted(draw(st.sets(st.integers(0, 9999), min_size=2, max_size=2))) for _ in "xy")
    count = draw(st.integers(1, 1 << 20))
    return Source(
        draw(st.integers(0, count - 1)),
        count,
        bottom + draw(st.integers(0, 100)),
        right + draw(st.integers(0, 100)),
        Box(left, top, right, bottom),
        draw(st.none() | st.builds(Window, st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))),
        tuple(draw(st.lists(st.text(st.characters(categories=("L", "N", "P"))), max_size=MOST_NOTES))),
        Examination(
            draw(st.sampled_from(("", "left", "right", "both"))),
            draw(st.text("ABC ", max_size=16)),
            draw(st.none() | st.floats(0, 1e9)),
        ),
    )


@given(sources())
def test_a_source_comes_back_from_a_decoding_process(source: Source) -> None:
    assert believed(json.loads(json.dumps(described(source)))) == source


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=8) | json_values)
def test_nonsense_of_a_decoding_process_is_not_believed(said: object) -> None:
    try:
        source = believed(said)
    except (ValueError, TypeError):
        return
    assert 0 <= source.index < source.count
    assert source.box.left < source.box.right <= source.width and source.box.top < source.box.bottom <= source.height


@pytest.mark.parametrize(
    "said",
    [
        [6, 6, 90, 120, [0, 0, 1, 1], None, [], ["", "", None]],
        [0, 1, 90, 120, [0, 0, 121, 1], None, [], ["", "", None]],
        [0, 1, 90, 120, [5, 0, 5, 1], None, [], ["", "", None]],
        [0, 1, 90, 120, [0, 0, 1, 1], [float("nan"), 1.0], [], ["", "", None]],
        [0, 1, 90, 120, [0, 0, 1, 1], None, ["note"] * (MOST_NOTES + 1), ["", "", None]],
        [True, 1, 90, 120, [0, 0, 1, 1], None, [], ["", "", None]],
        [0, 1, 90, 120, [0, 0, 1, 1], None, [], ["up", "", None]],
        [0, 1, 90, 120, [0, 0, 1, 1], None, [], ["", "", float("inf")]],
    ],
)
def test_what_contradicts_itself_is_not_believed(said: object) -> None:
    with pytest.raises(ValueError, match=r"no |nothing|so many"):
        believed(said)


def test_a_note_is_one_line() -> None:
    assert believed([0, 1, 9, 9, [0, 0, 9, 9], None, ["a\nb" + "c" * 1000], ["", "", None]]).notes == (
        ("a b" + "c" * 1000)[:300],
    )
