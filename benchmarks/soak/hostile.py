"""Hostile clients for the soak: half-open calls, answers that are never read, expensive messages and pictures, garbage."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from h2.exceptions import H2Error
from PIL import Image

from benchmarks.soak.raw_http2 import RawConnection
from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc

HALF_OPEN, DEAF = 200, 50  # connections
QUESTION = "/echovlm.v1.ReportService/AnswerQuestion"


def slow_picture() -> bytes:
    """Make a small file that is expensive to decode."""
    encoded = io.BytesIO()
    Image.new("L", (7000, 7000), 40).save(encoded, "JPEG", progressive=True)
    return encoded.getvalue()


@contextmanager
def held_connections(address: str, token: str) -> Iterator[None]:
    """Keep half-open calls, most of them from unknown clients, and answers that are never read, for as long as the context lasts."""
    question = pb.AnswerQuestionRequest(question="Why?", options={"sampling": {"max_new_tokens": 8}})
    with ExitStack() as held:
        for index in range(HALF_OPEN):
            connection = RawConnection(address, token=token if index % 4 == 0 else None)
            held.enter_context(connection).call(QUESTION, end=False)
        for _ in range(DEAF):
            connection = held.enter_context(RawConnection(address, window=0, token=token))
            connection.call(QUESTION, question.SerializeToString())
        yield


def started(address: str, token: str, seconds: float, seed: int) -> subprocess.Popen[bytes]:
    """Start a hostile client in a separate process, so that it affects the other clients' measurements only through the processor."""
    command = [sys.executable, "-m", "benchmarks.soak.hostile", address, token, str(seconds), str(seed)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1])


class Hostile:
    """Attack the server in every way, with a valid token and without one."""

    def __init__(self, address: str, token: str, seed: int) -> None:
        self._address, self._token = address, token
        self._random = random.Random(seed)
        self._slow = slow_picture()
        self._ways: list[Callable[[], None]] = [
            self._hold_calls_open,
            self._never_read,
            self._send_nonsense,
            self._upload_as_nobody,
            self._watch_unknown_health,
            self._cancel_slow_pictures,
            self._ask_for_absurd_numbers,
        ]

    def run(self, seconds: float) -> None:
        """Cycle through the attacks until the time is over."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(grpc.RpcError, OSError, H2Error):
                self._random.choice(self._ways)()

    def _hold_calls_open(self) -> None:
        with RawConnection(self._address, token=self._random.choice((self._token, None))) as connection:
            for _ in range(self._random.randint(1, 100)):
                connection.call(QUESTION, end=False)
            time.sleep(self._random.uniform(0, 2))

    def _never_read(self) -> None:
        question = pb.AnswerQuestionRequest(question="Why?", options={"sampling": {"max_new_tokens": 16}})
        with RawConnection(self._address, window=0, token=self._token) as connection:
            for _ in range(4):
                connection.call(QUESTION, question.SerializeToString())
            time.sleep(self._random.uniform(0, 2))

    def _send_nonsense(self) -> None:
        with RawConnection(self._address, token=self._token) as connection:
            streams = [connection.call(QUESTION, self._random.randbytes(200)) for _ in range(8)]
            connection.events_until_end(streams)

    def _upload_as_nobody(self) -> None:
        with self._channel() as channel:
            asked = pb.AnswerQuestionRequest(question="?", images=[pb.Image(data=bytes(30_000_000))])
            list(report_pb2_grpc.ReportServiceStub(channel).AnswerQuestion(asked, timeout=10))

    def _watch_unknown_health(self) -> None:
        with self._channel() as channel:
            asked = health_pb2.HealthCheckRequest(service="x" * 5_000_000)
            watch = health_pb2_grpc.HealthStub(channel).Watch(asked, timeout=10)
            time.sleep(self._random.uniform(0, 0.5))
            watch.cancel()

    def _cancel_slow_pictures(self) -> None:
        with self._channel() as channel:
            asked = pb.GenerateReportRequest(images=[pb.Image(data=self._slow)] * 4)
            stub = report_pb2_grpc.ReportServiceStub(channel)
            calls = [stub.GenerateReport(asked, metadata=self._known()) for _ in range(4)]
            time.sleep(self._random.uniform(0, 0.5))
            for call in calls:
                call.cancel()

    def _ask_for_absurd_numbers(self) -> None:
        with self._channel() as channel:
            sampling = pb.Sampling(repetition_penalty=1e-40, temperature=1e-30, top_p=1e-30, max_new_tokens=2**31)
            asked = pb.AnswerQuestionRequest(question="?", options=pb.GenerationOptions(sampling=sampling))
            list(report_pb2_grpc.ReportServiceStub(channel).AnswerQuestion(asked, metadata=self._known(), timeout=5))

    def _known(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token}"),)

    def _channel(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        return grpc.insecure_channel(self._address, options)


if __name__ == "__main__":
    Hostile(sys.argv[1], sys.argv[2], int(sys.argv[4])).run(float(sys.argv[3]))
