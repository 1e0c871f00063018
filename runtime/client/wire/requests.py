"""One call as a program asks it, and as the service's messages say it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.sending import number_within
from echovlm_edge.runtime.contracts.errors import NotOffered
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.request import Priority, Sampling
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, SchemaForm, SectionsForm, TextForm

_FORMS = {Task.JUDGE: pb.ANSWER_FORM_TRUE_FALSE, Task.CHOICE: pb.ANSWER_FORM_LETTER}


@dataclass(frozen=True)
class EarlierTurn:
    """A turn of a conversation that a request continues.

    Attributes:
        prompt: what the model was asked: `Result.prompt`.
        reply: the answer: `Result.text`, or what it was corrected to.
        images: that were sent with it; they are sent again.
        study_images: numbers of the study's images that were shown with it.
    """

    prompt: str = field(repr=False)
    reply: str = field(repr=False)
    images: Sequence[SentImage] = ()
    study_images: Sequence[int] = ()


@dataclass(frozen=True)
class ReportRequest:
    """One call: a task about images.

    Attributes:
        task: what is wanted.
        images: encoded files, in memory or on disk.
        prompt: replaces the task's default; the question, the statement to judge, or the options to choose from.
        language: of the default prompt, and so of the text.
        region: where the images were taken; named in the default prompt. None if it is not known.
        sampling: greedy by default.
        include_token_ids: put the generated token ids into the result.
        study: an open study's id, whose images come before `images`.
        priority: interactive calls go before batch calls.
        allow_mixed_studies: accept images of several studies of one patient.
        image_tokens: most visual tokens of a frame; None: the server's bound, or the study's.
        system: the system prompt; empty for the model's own.
        earlier: the turns that this request continues, the first one first.
        log_probabilities: how many of the likeliest tokens to report for each place, from 0 to 20; None to report no probability.
        form: what the text must look like; "answer" for True or False, or the letter of an option.
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
    system: str = field(default="", repr=False)
    earlier: Sequence[EarlierTurn] = ()
    log_probabilities: int | None = None
    form: TextForm | Literal["answer"] | None = None

    @property
    def all_images(self) -> tuple[SentImage, ...]:
        """The images as the server counts them: those of earlier turns, then the request's own."""
        return (*(image for turn in self.earlier for image in turn.images), *self.images)

    @property
    def continues(self) -> bool:
        """Whether it has a system prompt or earlier turns."""
        return bool(self.system or self.earlier)

    @property
    def recent(self) -> bool:
        """Whether it has what an older server would ignore without an error."""
        return self.continues or self.form is not None or self.task in (Task.FINDINGS, *_FORMS)


def message_of(request: ReportRequest) -> tuple[str, Any]:
    """Return the service's method, and its message without the images.

    Raises:
        InvalidInput: a number does not fit in the message.
    """
    common: dict[str, Any] = {
        "options": _options(request),
        "study": request.study,
        "image_tokens": number_within("image_tokens", request.image_tokens or 0),
        "conversation": _conversation(request) if request.continues else None,
    }
    match request.task:
        case Task.REPORT | Task.FINDINGS:
            parts = pb.REPORT_PARTS_FINDINGS if request.task is Task.FINDINGS else None
            return "GenerateReport", pb.GenerateReportRequest(prompt=request.prompt, parts=parts, **common)
        case Task.DIAGNOSIS:
            return "Diagnose", pb.DiagnoseRequest(prompt=request.prompt, **common)
        case Task.QUESTION | Task.JUDGE | Task.CHOICE:
            form = _FORMS.get(request.task)
            return "AnswerQuestion", pb.AnswerQuestionRequest(question=request.prompt, form=form, **common)


def begin_message(image_tokens: int | None) -> pb.BeginStudyRequest:
    """Return the message that begins a study whose frames take at most so many tokens; None for the server's bound.

    Raises:
        InvalidInput: the number does not fit in the message.
    """
    return pb.BeginStudyRequest(image_tokens=number_within("image_tokens", image_tokens or 0))


def followed(request: ReportRequest, result: pb.Result, question: str) -> ReportRequest:
    """Make the request of a question that continues `request`, which was answered with `result` and is about no study."""
    turn = EarlierTurn(result.prompt, result.text, request.images)
    return replace(request, task=Task.QUESTION, images=(), prompt=question, earlier=(*request.earlier, turn))


def put_images(request: ReportRequest, words: Any) -> Callable[[pb.Image], None]:
    """Return a function that puts each of `request.all_images`, in order, into the request's message `words`."""
    turns = [words.conversation.turns[place].images for place, turn in enumerate(request.earlier) for _ in turn.images]
    places = iter([*turns, *[words.images] * len(request.images)])
    return lambda image: next(places).append(image)


def check_limits(request: ReportRequest, limits: pb.Limits) -> None:
    """Refuse a request of which an old server would ignore a part.

    Raises:
        NotOffered: the server is too old.
    """
    if request.form is not None and not limits.max_choices:
        raise NotOffered("This server is too old for texts in a form: upgrade it, or leave the form out.")
    if request.recent and not limits.max_turns:
        raise NotOffered(
            "This server is too old for conversations and for the tasks findings, judge and choice: upgrade it, or ask a question "
            "by itself."
        )


def _conversation(request: ReportRequest) -> pb.Conversation:
    turns = [pb.Turn(prompt=turn.prompt, reply=turn.reply, study_images=turn.study_images) for turn in request.earlier]
    return pb.Conversation(system_prompt=request.system, turns=turns)


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
        log_probabilities=None
        if request.log_probabilities is None
        else number_within("log_probabilities", request.log_probabilities),
        text_form=_form(request.form),
    )


def _form(form: TextForm | Literal["answer"] | None) -> pb.TextForm | None:
    match form:
        case ChoiceForm(texts):
            return pb.TextForm(choice=pb.Choices(texts=texts))
        case SchemaForm(schema):
            return pb.TextForm(json_schema=schema)
        case PatternForm(pattern):
            return pb.TextForm(regex=pattern)
        case SectionsForm():
            return pb.TextForm(sections=True)
        case "answer":
            return pb.TextForm(answer=True)
    return None
