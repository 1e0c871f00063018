"""What the clients ask: calls of every kind about frames of a real cine, by both doors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.data import get_testdata_file

from benchmarks.soak.http_clients import Form
from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc

CINE, FRAMES = "examples_ybr_color.dcm", 30


def cine() -> bytes:
    """Read a real cine's file."""
    path = get_testdata_file(CINE, download=False)
    assert isinstance(path, str)
    return Path(path).read_bytes()


def image(*frames: int) -> pb.Image:
    """Read frames of it."""
    return pb.Image(data=cine(), frames=pb.FrameSelection(indices=pb.FrameIndices(index=frames)))


@dataclass(frozen=True)
class Ask:
    """One call: the method and its message."""

    method: str
    message: pb.GenerateReportRequest | pb.DiagnoseRequest | pb.AnswerQuestionRequest

    def start(self, stub: report_pb2_grpc.ReportServiceStub, timeout: float | None = None) -> Any:
        """Start it."""
        return getattr(stub, self.method)(self.message, timeout=timeout)

    def result(self, stub: report_pb2_grpc.ReportServiceStub) -> pb.Result:
        """Return its last message."""
        *_, last = self.start(stub)
        return last.result


def mixed(tokens: int) -> list[Ask]:
    """Make random calls: mixed tasks, languages and numbers of images."""
    asks = []
    for index in range(18):
        language = pb.LANGUAGE_ZH if index % 2 else pb.LANGUAGE_EN
        options = pb.GenerationOptions(language=language, sampling=pb.Sampling(max_new_tokens=tokens + 4 * (index % 5)))
        pictures = [image(5 * index % FRAMES)] if index % 3 else [image(index % FRAMES, (index + 9) % FRAMES)]
        match index % 3:
            case 0:
                asks.append(Ask("GenerateReport", pb.GenerateReportRequest(images=pictures, options=options)))
            case 1:
                asks.append(Ask("Diagnose", pb.DiagnoseRequest(images=pictures, options=options)))
            case _:
                text = f"Is the margin of region {index} smooth?"
                message = pb.AnswerQuestionRequest(question=text, images=pictures[: index % 2], options=options)
                asks.append(Ask("AnswerQuestion", message))
    return asks


def by_both_doors(tokens: int) -> tuple[list[Form], list[Ask]]:
    """Make reports' forms, and the calls of gRPC that have their texts."""
    forms, asks, file = list[Form](), list[Ask](), cine()
    for index in range(8):
        language, known = ("zh", pb.LANGUAGE_ZH) if index % 2 else ("en", pb.LANGUAGE_EN)
        length, frames = tokens + 4 * index, 1 + index % 3
        pictures = [pb.Image(data=file, frames=pb.FrameSelection(evenly_spaced=frames))]
        options = pb.GenerationOptions(language=known, sampling=pb.Sampling(max_new_tokens=length))
        fields = {"language": language, "frames": str(frames), "max_completion_tokens": str(length)}
        if index < 4:
            forms.append(Form(fields | {"task": "report"}, file))
            asks.append(Ask("GenerateReport", pb.GenerateReportRequest(images=pictures, options=options)))
        else:
            forms.append(Form(fields | {"task": "impression"}, file))
            asks.append(Ask("Diagnose", pb.DiagnoseRequest(images=pictures, options=options)))
    return forms, asks
