"""A finished report as a program reads it, and the events that come before it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.request import Box, Stage, StageStarted, TextDelta, Window
from echovlm_edge.runtime.contracts.stages import wire_name
from echovlm_edge.runtime.contracts.tasks import Language, Task
from echovlm_edge.runtime.contracts.text_form import ChoiceProbability
from echovlm_edge.runtime.contracts.token_probability import TokenProbability
from echovlm_edge.runtime.resources.atomic_file import write_whole

STAGE_OF_WIRE: Mapping[int, Stage] = {pb.Stage.Value(wire_name(stage)): stage for stage in Stage}


@dataclass(frozen=True)
class ShownPicture:
    """One frame as the model was shown it.

    Attributes:
        image: the call's image that it is of, counted from 1, or in a study `AddedImage.number`.
        of_study: whether it is a study's image.
        file: the image's name.
        frame: its place in the original file, counted from 0.
        frame_count: frames in the original file.
        width: of a whole frame in the file, in pixels.
        height: likewise.
        box: the part that was kept, in pixels; None if the server does not say.
        window: the grey values shown, in the file's own units; None if values are shown as they are.
        model_width: of the picture as the model sees it, in pixels.
        model_height: likewise.
        tokens: how much of the context it takes.
        notes: what a person should know about it, a sentence each.
        fingerprint: pictures that look alike differ in few of its 256 bits; empty if the server gives none.
    """

    image: int
    of_study: bool
    file: str = field(repr=False)
    frame: int
    frame_count: int
    width: int
    height: int
    box: Box | None
    window: Window | None
    model_width: int
    model_height: int
    tokens: int
    notes: tuple[str, ...] = field(repr=False)
    fingerprint: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Usage:
    """Tokens of one call: of the prompt, of its images, generated, and those of the prompt that were cached."""

    prompt_tokens: int
    image_tokens: int
    generated_tokens: int
    reused_tokens: int


@dataclass(frozen=True)
class Timings:
    """Wall time in seconds.

    Attributes:
        stages: of each stage that ran; they add up to the total.
        first_token_seconds: from the request's arrival to the first token; None if there was none.
        total_seconds: from the request's arrival to its result.
    """

    stages: Mapping[Stage, float]
    first_token_seconds: float | None
    total_seconds: float


@dataclass(frozen=True)
class Report:
    """A finished report, diagnosis or answer: a draft for a clinician to review.

    Attributes:
        text: the whole text.
        findings: the part under that heading; empty if there is none.
        impression: the part under that heading; empty if there is none.
        pictures: what the model was shown, in order.
        usage: tokens.
        timings: seconds.
        finish_reason: `stop` if the model ended the text, `length` if a limit did, or `cancelled`.
        model: the checkpoint that wrote it.
        bundle_id: the bundle that wrote it.
        notice: what every display and print of the text must carry.
        notes: what should be checked about the text, a sentence each; every display and print must carry them, too.
        request_id: names the call in the server's log; empty if the server does not say.
        token_ids: of the text, if they were asked for.
        prompt: what the model was asked, the default prompt included; empty if the server does not say.
        tokens: of the text with their log probabilities, if they were asked for.
        choices: how likely each choice was, if the form is one.
    """

    text: str = field(repr=False)
    findings: str = field(repr=False)
    impression: str = field(repr=False)
    pictures: tuple[ShownPicture, ...]
    usage: Usage
    timings: Timings
    finish_reason: Literal["stop", "length", "cancelled", "unspecified"]
    model: str
    bundle_id: str
    notice: str = field(repr=False)
    notes: tuple[str, ...] = field(repr=False)
    request_id: str
    token_ids: tuple[int, ...] = field(repr=False)
    prompt: str = field(repr=False)
    tokens: tuple[TokenProbability, ...] = field(repr=False)
    choices: tuple[ChoiceProbability, ...] = field(repr=False)
    _result: pb.Result = field(repr=False, compare=False)
    _images: tuple[SentImage, ...] = field(repr=False, compare=False)
    _language: Language = field(repr=False, compare=False)
    _task: Task = field(repr=False, compare=False)

    @property
    def result(self) -> pb.Result:
        """The server's message, in which a study's images and then the call's are numbered in one sequence, as documents refer to them."""
        return self._result

    def write_sr(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a DICOM Basic Text SR (PS3.3 A.35.1) about the call's DICOM images; needs the extra `clinical`.

        Raises:
            InvalidInput: there is no DICOM image, or they are of several studies.
            NotPossibleHere: highdicom or the folder is not there.
        """
        self._write(Path(path), None)

    def write_fhir(self, path: str | os.PathLike[str]) -> None:
        """Write the report as a FHIR R4 DiagnosticReport; needs the extra `clinical`.

        Raises:
            InvalidInput: the DICOM images are of several patients.
            NotPossibleHere: fhir.resources or the folder is not there.
        """
        self._write(None, Path(path))

    def _write(self, sr: Path | None, fhir: Path | None) -> None:
        from echovlm_edge.runtime.clinical.documents import asked_documents

        for path, document in asked_documents(sr, fhir, self._images, self._language, self._task):
            write_whole(path, document(self._result, self.request_id))


ReportEvent: TypeAlias = StageStarted | TextDelta | Report


@dataclass(frozen=True)
class AddedImage:
    """An image that was added to a study.

    Attributes:
        number: names it in `Study.withdraw`: 1 for the study's first image, never used twice.
        study_tokens: how much of the context the study takes with it.
        pictures: what the model is shown of it.
    """

    number: int
    study_tokens: int
    pictures: tuple[ShownPicture, ...]


@dataclass(frozen=True)
class OpenStudy:
    """A study that a client has open on the server.

    Attributes:
        id: names it in `ReportClient.end_study`, and in no other call.
        age_seconds: since it was begun.
        unused_seconds: since the last call about it ended; 0 during one.
        in_use: whether a call about it is in progress.
        images: how many it has.
        bytes: the server's memory for their pictures.
    """

    id: str
    age_seconds: float
    unused_seconds: float
    in_use: bool
    images: int
    bytes: int


@dataclass(frozen=True)
class Asked:
    """The images, the language and the task of a call, which the server's result does not repeat.

    Attributes:
        images: of the call, in order; those of earlier turns first.
        language: of the default prompt.
        study_images: by their numbers, in order.
        task: what was wanted.
    """

    images: tuple[SentImage, ...] = ()
    language: Language = Language.EN
    study_images: Mapping[int, SentImage] = field(default_factory=dict)
    task: Task = Task.REPORT


def event_of(event: pb.GenerateEvent, request_id: str, asked: Asked) -> ReportEvent | None:
    """Convert a message of the stream to an event; None for one that this version does not know."""
    match event.WhichOneof("event"):
        case "stage_started":
            stage = STAGE_OF_WIRE.get(event.stage_started)
            return StageStarted(stage) if stage else None
        case "text":
            return TextDelta(event.text, _tokens(event.tokens))
        case "result":
            return report_of(event.result, request_id, asked)
    return None


def report_of(result: pb.Result, request_id: str, asked: Asked) -> Report:
    """Convert the stream's last message to a report."""
    usage, timings = result.usage, result.timings
    return Report(
        text=result.text,
        findings=result.sections.findings,
        impression=result.sections.impression,
        pictures=_pictures(result.pictures, asked),
        usage=Usage(usage.prompt_tokens, usage.image_tokens, usage.generated_tokens, usage.reused_tokens),
        timings=Timings(
            {STAGE_OF_WIRE[stage.stage]: stage.seconds for stage in timings.stages if stage.stage in STAGE_OF_WIRE},
            timings.first_token_seconds if timings.HasField("first_token_seconds") else None,
            timings.total_seconds,
        ),
        finish_reason=_FINISH_REASONS.get(result.finish_reason, "unspecified"),
        model=result.model,
        bundle_id=result.bundle_id,
        notice=result.notice,
        notes=tuple(result.notes),
        request_id=request_id,
        token_ids=tuple(result.token_ids),
        prompt=result.prompt,
        tokens=_tokens(result.tokens),
        choices=tuple(ChoiceProbability(one.text, one.log_probability, one.probability) for one in result.choices),
        _result=_counted_through(result, asked),
        _images=(*asked.study_images.values(), *asked.images),
        _language=asked.language,
        _task=asked.task,
    )


def _tokens(tokens: Sequence[pb.TokenProbability]) -> tuple[TokenProbability, ...]:
    return tuple(
        TokenProbability(one.token_id, one.text, one.bytes, one.log_probability, _tokens(one.alternatives))
        for one in tokens
    )


_FINISH_REASONS: Mapping[int, Literal["stop", "length", "cancelled"]] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_CANCELLED: "cancelled",
}


def _counted_through(result: pb.Result, asked: Asked) -> pb.Result:
    """Number a study's images and then the call's in one sequence, as documents refer to them."""
    if not asked.study_images:
        return result
    places = {number: place for place, number in enumerate(asked.study_images, 1)}
    counted = pb.Result()
    counted.CopyFrom(result)
    for picture in counted.pictures:
        of_study = picture.WhichOneof("file") == "study_image"
        picture.image = places.get(picture.study_image, 0) if of_study else picture.image + len(places)
    return counted


def added_of(added: pb.AddedImage, image: SentImage) -> AddedImage:
    """Convert the server's answer about an image that was added."""
    shown = _pictures(added.pictures, Asked(study_images={added.number: image}))
    return AddedImage(added.number, added.study_tokens, shown)


def open_studies_of(listed: pb.ListStudiesResponse) -> tuple[OpenStudy, ...]:
    """Convert the server's list of a client's studies."""
    return tuple(
        OpenStudy(study.id, study.age_seconds, study.unused_seconds, study.in_use, study.images, study.bytes)
        for study in listed.studies
    )


def _pictures(pictures: Sequence[pb.Picture], asked: Asked) -> tuple[ShownPicture, ...]:
    of_call = dict(enumerate(asked.images, 1))
    return tuple(
        _picture(picture, asked.study_images, "image {} of the study")
        if picture.WhichOneof("file") == "study_image"
        else _picture(picture, of_call, "image {}")
        for picture in pictures
    )


def _picture(picture: pb.Picture, images: Mapping[int, SentImage], otherwise: str) -> ShownPicture:
    of_study = picture.WhichOneof("file") == "study_image"
    number = picture.study_image if of_study else picture.image
    box, window = picture.box, picture.window
    return ShownPicture(
        image=number,
        of_study=of_study,
        file=images[number].name if number in images else otherwise.format(number),
        frame=picture.frame,
        frame_count=picture.frame_count,
        width=picture.width,
        height=picture.height,
        box=Box(box.left, box.top, box.right, box.bottom) if picture.HasField("box") else None,
        window=Window(window.center, window.width) if picture.HasField("window") else None,
        model_width=picture.model_width,
        model_height=picture.model_height,
        tokens=picture.tokens,
        notes=tuple(picture.notes),
        fingerprint=picture.fingerprint,
    )
