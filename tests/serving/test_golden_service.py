"""The golden cases through the real gRPC server: the authors' tokens, to the last one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.image_path import read_image
from echovlm_edge.runtime.contracts.request import FrameSelection, Sampling
from echovlm_edge.runtime.contracts.tasks import Task
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import patchify
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support import golden


@pytest.fixture(scope="module")
def engine(golden_bundle: Path) -> ReportEngine:
    return ReportEngine.open(golden_bundle)


@pytest.fixture(scope="module")
def client(engine: ReportEngine) -> Iterator[Connection]:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0"))
    with Connection(server.address) as client:
        yield client
    server.stop()


def generate(client: Connection, case: golden.Golden) -> tuple[str, pb.Result]:
    """The streamed text and the final message."""
    images = [read_image(path, FrameSelection(), True) for path in case.images]
    request = ReportRequest(
        Task.REPORT if images else Task.QUESTION,
        images,
        case.prompt,
        sampling=Sampling(max_new_tokens=len(case.arrays["generated_ids"])),
        include_token_ids=True,
    )
    events = list(client.generate(request))
    return "".join(event.text for event in events), events[-1].result


def test_tokens_and_text_are_the_authors(client: Connection, case: golden.Golden) -> None:
    streamed, result = generate(client, case)
    assert list(result.token_ids) == case.arrays["generated_ids"].tolist()
    assert streamed == result.text == case.text
    assert result.usage.prompt_tokens == case.arrays["input_ids"].size
    assert result.usage.generated_tokens == len(result.token_ids)
    assert result.notice


def test_pixel_values(case: golden.Golden, engine: ReportEngine) -> None:
    for path, expected, grid in zip(case.images, case.patches(), case.grids, strict=True):
        (frame,) = decode_image(read_image(path, FrameSelection(), True))
        patches = patchify(frame.pixels, engine.settings)
        assert patches.grid == grid
        np.testing.assert_allclose(patches.values, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_every_stage_of_the_bundle(case: golden.Golden, target: str, build_bundle: object) -> None:
    bundle = Bundle(build_bundle(target=target))  # type: ignore[operator]
    golden.check_stages(case, OnnxRuntimeBackend(bundle), bundle.manifest.model)
