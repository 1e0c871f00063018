"""A cine that is larger than any message is uploaded and reported in hardly more memory than it has bytes."""

from __future__ import annotations

from pathlib import Path

import grpc
import psutil

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from tests.support.long_cine import FRAME_BYTES, MemoryPeak, long_cine
from tests.support.questions import question, result
from tests.support.server_process import server_process
from tests.support.waiting import wait_for

FRAMES = 120


def loaded_decoders(server: int) -> int:
    """How many processes have loaded what they decode with: all that they will hold."""
    statuses = [Path(f"/proc/{child.pid}/status").read_text() for child in psutil.Process(server).children()]
    return sum("NoNewPrivs:\t1" in status for status in statuses)


def test_a_long_cine_takes_its_own_memory_and_that_of_a_frame(golden_bundle: Path, tmp_path: Path) -> None:
    """160 MB; the file is in memory once, and of its frames only the one that is shown."""
    with (
        server_process(golden_bundle, tmp_path) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = report_pb2_grpc.ReportServiceStub(channel)

        def reported(frames: int) -> pb.Result:
            file = stub.Upload(pb.UploadRequest(data=part) for part in long_cine(frames))
            asked = pb.GenerateReportRequest(images=[pb.Image(upload=file.id)], options=question(4).options)
            answer = result(stub.GenerateReport(asked))
            stub.ForgetUpload(pb.ForgetUploadRequest(id=file.id))
            return answer

        wait_for(lambda: loaded_decoders(server.process.pid) == 3)
        short = reported(1)  # loads what is loaded with the first report
        with MemoryPeak(server.process.pid) as memory:
            before = memory.now()
            long = reported(FRAMES)
            grown = memory.bytes - before
        after = memory.now()
        server.stop()
    assert long.text == short.text, "another frame than the middle one was shown"
    assert FRAMES * FRAME_BYTES < memory.files < 1.01 * FRAMES * FRAME_BYTES
    assert grown < 1.6 * FRAMES * FRAME_BYTES, f"{grown / 1e6:.0f} MB more"
    assert after - before < 0.5 * FRAMES * FRAME_BYTES, f"{(after - before) / 1e6:.0f} MB more are left"
