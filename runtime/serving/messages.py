"""Convert the messages of report.proto to the runtime's values and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import cast

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput, UnusableForm
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    FrameSelection,
    ImageInput,
    OriginalFrames,
    Picture,
    Priority,
    Sampling,
    Stage,
    StageStarted,
    TextDelta,
)
from echovlm_edge.runtime.contracts.sections import Sections, split_sections
from echovlm_edge.runtime.contracts.stages import wire_name
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.contracts.text_form import (
    MOST_CHOICES,
    ChoiceForm,
    PatternForm,
    SchemaForm,
    SectionsForm,
    TextForm,
)
from echovlm_edge.runtime.contracts.token_probability import MOST_ALTERNATIVES, TokenProbability
from echovlm_edge.runtime.engine.engine_info import EngineInfo
from echovlm_edge.runtime.facts.closed_answers import LETTERS, options_of
from echovlm_edge.runtime.imaging.image_file import ImageLimits
from echovlm_edge.runtime.imaging.preprocess import check_image_tokens

NOTICE = "Draft, not reviewed by a clinician."

STAGES = {stage: cast(pb.Stage, pb.Stage.Value(wire_name(stage))) for stage in Stage}
REPORT_TASKS = {pb.REPORT_PARTS_UNSPECIFIED: Task.REPORT, pb.REPORT_PARTS_FINDINGS: Task.FINDINGS}
ANSWER_TASKS = {
    pb.ANSWER_FORM_UNSPECIFIED: Task.QUESTION,
    pb.ANSWER_FORM_TRUE_FALSE: Task.JUDGE,
    pb.ANSWER_FORM_LETTER: Task.CHOICE,
}
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
LANGUAGES = {pb.LANGUAGE_UNSPECIFIED: Language.EN, pb.LANGUAGE_EN: Language.EN, pb.LANGUAGE_ZH: Language.ZH}
NOTHING_SAID = pb.Conversation()
REGIONS = {pb.AnatomicalRegion.Value(f"ANATOMICAL_REGION_{region.name}"): region for region in Region}
PRIORITIES = {
    pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BATCH: Priority.BATCH,
}


@dataclass(frozen=True)
class CallLimits:
    """How large one call may be; checked before any of its images is decoded.

    Attributes:
        message_bytes: of the request; gRPC refuses a larger one before it is in memory.
        images: image files, those of earlier turns included.
        frames: frames asked for, of all files together.
        prompt_characters: of a prompt or question.
        turns: earlier turns.
        conversation_characters: of the system prompt, the earlier turns and the prompt together.
    """

    message_bytes: int = 64 << 20
    images: int = 64
    frames: int = 128
    prompt_characters: int = 20_000
    turns: int = 64
    conversation_characters: int = 100_000

    def check(self, text: str, images: Sequence[pb.Image], conversation: pb.Conversation = NOTHING_SAID) -> None:
        """Refuse a call that exceeds a limit.

        Raises:
            InvalidInput: it does; the sentence names the limit.
        """
        if len(text) > self.prompt_characters:
            raise InvalidInput(
                f"The prompt has {len(text):,} characters, more than {self.prompt_characters:,}: send a shorter one."
            )
        turns = conversation.turns
        if len(turns) > self.turns:
            raise InvalidInput(
                f"The conversation has {len(turns)} earlier turns, more than {self.turns}: leave out the first ones."
            )
        said = len(text) + len(conversation.system_prompt) + sum(len(turn.prompt) + len(turn.reply) for turn in turns)
        if said > self.conversation_characters:
            raise InvalidInput(
                f"The conversation has {said:,} characters, more than {self.conversation_characters:,}: leave out earlier turns."
            )
        images = [*(image for turn in turns for image in turn.images), *images]
        if len(images) > self.images:
            raise InvalidInput(f"The call has {len(images)} images, more than {self.images}: send fewer.")
        asked = [
            len(image.original.index) or image.frames.evenly_spaced or len(image.frames.indices.index) or 1
            for image in images
        ]
        if sum(asked) > self.frames:
            raise InvalidInput(f"The call asks for {sum(asked):,} frames, more than {self.frames}: ask for fewer.")


def report_task(request: pb.GenerateReportRequest) -> Task:
    """Return the task of a report's parts; raises InvalidInput for unknown ones."""
    if request.parts not in REPORT_TASKS:
        raise InvalidInput(f"There are no report parts {request.parts}: choose REPORT_PARTS_FINDINGS, or leave it out.")
    return REPORT_TASKS[request.parts]


def answer_task(request: pb.AnswerQuestionRequest) -> Task:
    """Return the task of a form of answer; raises InvalidInput for an unknown one."""
    if request.form not in ANSWER_TASKS:
        raise InvalidInput(
            f"There is no answer form {request.form}: choose ANSWER_FORM_TRUE_FALSE or ANSWER_FORM_LETTER, or leave it out."
        )
    return ANSWER_TASKS[request.form]


def language(options: pb.GenerationOptions) -> Language:
    """Return the language of the default prompt; raises InvalidInput for an unknown one."""
    if options.language not in LANGUAGES:
        raise InvalidInput(f"There is no language {options.language}: choose LANGUAGE_EN or LANGUAGE_ZH.")
    return LANGUAGES[options.language]


def region(options: pb.GenerationOptions) -> Region | None:
    """Return the anatomical region of the default prompt, if any; raises InvalidInput for an unknown one."""
    if options.region == pb.ANATOMICAL_REGION_UNSPECIFIED:
        return None
    if options.region not in REGIONS:
        raise InvalidInput(f"There is no anatomical region {options.region}: choose one that GetModelInfo lists.")
    return REGIONS[options.region]


def priority(options: pb.GenerationOptions) -> Priority:
    """Return the call's priority; raises InvalidInput for an unknown one."""
    if options.priority not in PRIORITIES:
        raise InvalidInput(f"There is no priority {options.priority}: choose PRIORITY_INTERACTIVE or PRIORITY_BATCH.")
    return PRIORITIES[options.priority]


def sampling(options: pb.GenerationOptions) -> Sampling:
    """Convert the sampling options; fields that are not set have their defaults."""
    given = {field.name: value for field, value in options.sampling.ListFields()}
    return Sampling(**given)


def log_probabilities(options: pb.GenerationOptions) -> int | None:
    """Return how many of the likeliest tokens are wanted of each place; None if nothing is. Raises InvalidInput for too many."""
    if not options.HasField("log_probabilities"):
        return None
    if options.log_probabilities > MOST_ALTERNATIVES:
        raise InvalidInput(f"log_probabilities is at most {MOST_ALTERNATIVES}, got {options.log_probabilities:,}.")
    return options.log_probabilities


def text_form(options: pb.GenerationOptions, task: Task, text: str) -> TextForm | None:
    """Return the form of the text that is wanted, if any; `text` is the caller's own.

    Raises:
        UnusableForm: it cannot be, or is not one of the task.
    """
    asked = options.text_form
    match asked.WhichOneof("form"):
        case "choice":
            return ChoiceForm(tuple(asked.choice.texts))
        case "json_schema":
            return SchemaForm(asked.json_schema)
        case "regex":
            return PatternForm(asked.regex)
        case "sections" if asked.sections:
            return SectionsForm(language(options))
        case "answer" if asked.answer and task is Task.JUDGE:
            return ChoiceForm(("True", "False"))
        case "answer" if asked.answer and task is Task.CHOICE:
            return ChoiceForm(tuple(letter.upper() for letter in options_of(text)) or tuple(LETTERS))
        case "answer" if asked.answer:
            raise UnusableForm("Only a judgement and a choice have an answer's form: send choices, or leave it out.")
    return None


def image_tokens(asked: int, info: EngineInfo) -> int | None:
    """Return the bound on a frame's tokens that a message asks for; None for 0, which asks for none.

    Raises:
        ImageTokensOutOfRange: the engine cannot read frames at that bound.
    """
    if asked:
        check_image_tokens(asked, *info.image_tokens)
    return asked or None


def image_input(
    image: pb.Image, number: int, uploaded: MemoryFile | None = None, image_tokens: int | None = None
) -> ImageInput:
    """Convert the call's image at place `number`, counted from 1; `uploaded` is the file that it names, `image_tokens` its bound.

    Raises:
        InvalidInput: it has both data and an upload, or its `original` does not fit its frames.
    """
    name = f"image {number}"
    if image.data and image.upload:
        raise InvalidInput(f"{name} has both data and an upload: send one of them.")
    original = _original(image, name)
    # A file that the client cut down contains exactly the frames that are asked for.
    indices = range(len(original.numbers)) if original else image.frames.indices.index
    selection = FrameSelection(tuple(indices), 0 if original else image.frames.evenly_spaced)
    data = image.data if uploaded is None else uploaded
    return ImageInput(data, image.media_type, name, selection, not image.keep_whole_frame, original, image_tokens)


def _original(image: pb.Image, name: str) -> OriginalFrames | None:
    if not image.HasField("original"):
        return None
    numbers, count = tuple(image.original.index), image.original.count
    if not numbers:
        raise InvalidInput(f"{name} has no frame numbers of its original: give one for each of its frames.")
    if len(numbers) > (most := ImageLimits().max_frames):
        raise InvalidInput(f"{name} has {len(numbers):,} frames of its original, at most {most} are read from a file.")
    if (largest := max(numbers)) >= count:
        raise InvalidInput(f"{name} gives frame {largest:,} of an original that has {count:,} frames, numbered from 0.")
    return OriginalFrames(numbers, count)


def event_message(
    event: Event,
    info: EngineInfo,
    include_token_ids: bool,
    total_seconds: float,
    notes: Sequence[str] = (),
    prompt: str = "",
    task: Task = Task.REPORT,
) -> pb.GenerateEvent:
    """Convert one event of a stream.

    Args:
        event: the event.
        info: what is loaded.
        include_token_ids: whether a result has them.
        total_seconds: the time since the call arrived.
        notes: those about a finished text.
        prompt: what the model was asked.
        task: what was wanted.
    """
    match event:
        case StageStarted(stage):
            return pb.GenerateEvent(stage_started=STAGES[stage])
        case TextDelta(text, probabilities):
            return pb.GenerateEvent(text=text, tokens=map(_token, probabilities))
        case Finished():
            return pb.GenerateEvent(result=_result(event, info, include_token_ids, total_seconds, notes, prompt, task))


def _result(
    event: Finished,
    info: EngineInfo,
    include_token_ids: bool,
    total_seconds: float,
    notes: Sequence[str],
    prompt: str,
    task: Task,
) -> pb.Result:
    sections = split_sections(event.text)
    if task is Task.FINDINGS and sections == Sections():
        sections = Sections(event.text)
    return pb.Result(
        text=event.text,
        sections=pb.Sections(findings=sections.findings, impression=sections.impression),
        finish_reason=FINISH_REASONS[event.finish_reason],
        usage=pb.Usage(
            prompt_tokens=event.prompt_tokens,
            image_tokens=event.image_tokens,
            generated_tokens=len(event.token_ids),
            reused_tokens=event.reused_tokens,
        ),
        timings=pb.Timings(
            stages=[pb.StageTime(stage=STAGES[stage], seconds=seconds) for stage, seconds in event.seconds.items()],
            first_token_seconds=event.first_token_seconds,
            total_seconds=total_seconds,
        ),
        token_ids=event.token_ids if include_token_ids else (),
        notice=NOTICE,
        model=event.model or info.model,
        bundle_id=event.bundle_id or info.bundle_id,
        pictures=map(picture, event.pictures),
        notes=notes,
        prompt=prompt,
        tokens=map(_token, event.probabilities),
        choices=[pb.ChoiceProbability(**vars(choice)) for choice in event.choices],
    )


def _token(one: TokenProbability) -> pb.TokenProbability:
    return pb.TokenProbability(
        token_id=one.token_id,
        text=one.text,
        bytes=one.data,
        log_probability=one.log_probability,
        alternatives=map(_token, one.alternatives),
    )


def picture(shown: Picture) -> pb.Picture:
    """Convert the description of a picture that the model was shown."""
    source = shown.source
    return pb.Picture(
        **{"study_image" if shown.of_study else "image": shown.image},
        frame=source.index,
        frame_count=source.count,
        width=source.width,
        height=source.height,
        box=pb.Box(**source.box._asdict()),
        window=pb.Window(**source.window._asdict()) if source.window else None,
        model_width=shown.width,
        model_height=shown.height,
        tokens=shown.tokens,
        notes=source.notes,
        fingerprint=shown.fingerprint,
    )


def model_info(info: EngineInfo, limits: CallLimits, max_upload_bytes: int) -> pb.ModelInfo:
    """Make the answer of GetModelInfo; `max_upload_bytes` is 0 if the server accepts no uploads."""
    return pb.ModelInfo(
        model=info.model,
        checkpoint_sha256=info.checkpoint_sha256,
        bundle_id=info.bundle_id,
        bundle_format=info.bundle_format,
        target=info.target,
        precision=info.precision,
        limits=pb.Limits(
            max_sequence=info.max_sequence,
            max_model_pixels=info.max_pixels,
            max_image_pixels=ImageLimits().max_pixels,
            max_message_bytes=limits.message_bytes,
            max_images=limits.images,
            max_prompt_characters=limits.prompt_characters,
            max_upload_bytes=max_upload_bytes,
            min_image_tokens=info.image_tokens[0],
            max_image_tokens=info.image_tokens[1],
            max_turns=limits.turns,
            max_conversation_characters=limits.conversation_characters,
            max_choices=MOST_CHOICES,
        ),
        languages=[pb.LANGUAGE_EN, pb.LANGUAGE_ZH],
        regions=[f"ANATOMICAL_REGION_{region.name}" for region in Region],
        version=version("echovlm-edge"),
        calibration_pictures=sorted(info.calibration_pictures),
        adapter=pb.Adapter(**asdict(info.adapter)) if info.adapter else None,
        refused_bundle=info.refused_bundle.reason if info.refused_bundle else "",
        refused_bundle_name=info.refused_bundle.name if info.refused_bundle else "",
    )
