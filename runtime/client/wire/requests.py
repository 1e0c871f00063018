"""One call as a program asks it, and as the service's messages say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.sending import number_within
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.request import Priority, Sampling
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task


@dataclass(frozen=True)
class ReportRequest:
    """One call: a task about images.

    Attributes:
        task: report, diagnosis or question.
        images: encoded files, in memory or on disk.
        prompt: replaces the task's default; for a question it is the question.
        language: of the default prompt, and so of the text.
        region: where the images were taken; named in the default prompt. None if it is not known.
        sampling: greedy by default.
        include_token_ids: put the generated token ids into the result.
        study: an open study's id, whose images come before `images`.
        priority: interactive calls go before batch calls.
        allow_mixed_studies: accept images of several studies of one patient.
        image_tokens: most visual tokens of a frame; None: the server's bound, or the study's.
    """

    task: Task = Task.REPORT
    images: Sequence[SentImage] = ()
    prompt: str = field(default="", repr=False)
    language: Language = Language.EN
    region: Region | None = None
    sampling: Sampling = field(default_factory=Sampling)
    include_token_ids: bool = False
    study: str = field(default="", repr=False)
    priority: Priority = Priority.INTERACTIVE
    allow_mixed_studies: bool = False
    image_tokens: int | None = None


def message_of(request: ReportRequest) -> tuple[str, Any]:
    """Return the service's method, and its message without the images.

    Raises:
        InvalidInput: a number does not fit in the message.
    """
    common: dict[str, Any] = {
        "options": _options(request),
        "study": request.study,
        "image_tokens": number_within("image_tokens", request.image_tokens or 0),
    }
    match request.task:
        case Task.REPORT:
            return "GenerateReport", pb.GenerateReportRequest(prompt=request.prompt, **common)
        case Task.DIAGNOSIS:
            return "Diagnose", pb.DiagnoseRequest(prompt=request.prompt, **common)
        case Task.QUESTION:
            return "AnswerQuestion", pb.AnswerQuestionRequest(question=request.prompt, **common)


def begin_message(image_tokens: int | None) -> pb.BeginStudyRequest:
    """Return the message that begins a study whose frames take at most so many tokens; None for the server's bound.

    Raises:
        InvalidInput: the number does not fit in the message.
    """
    return pb.BeginStudyRequest(image_tokens=number_within("image_tokens", image_tokens or 0))


def _options(request: ReportRequest) -> pb.GenerationOptions:
    sampling = request.sampling
    return pb.GenerationOptions(
        language=f"LANGUAGE_{request.language.name}",
        region=f"ANATOMICAL_REGION_{request.region.name if request.region else 'UNSPECIFIED'}",
        sampling=pb.Sampling(
            max_new_tokens=number_within("max_new_tokens", sampling.max_new_tokens),
            temperature=sampling.temperature,
            top_k=number_within("top_k", sampling.top_k),
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=number_within("seed", sampling.seed, 64),
        ),
        include_token_ids=request.include_token_ids,
        priority=pb.PRIORITY_BATCH if request.priority is Priority.BATCH else pb.PRIORITY_INTERACTIVE,
        allow_mixed_studies=request.allow_mixed_studies,
    )
