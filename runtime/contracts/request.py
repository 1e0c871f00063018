"""What one generation is asked, and the events that answer it: plain values shared by the engine, the server and the profiler."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from io import BytesIO
from secrets import token_bytes
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.fingerprint import fingerprint_of
from echovlm_edge.runtime.contracts.memory_file import MemoryFile
from echovlm_edge.runtime.contracts.origins import ANYBODY, Origin
from echovlm_edge.runtime.contracts.text_form import ChoiceProbability, TextForm
from echovlm_edge.runtime.contracts.token_probability import TokenProbability

if TYPE_CHECKING:  # a client has no numpy
    import numpy as np
    from numpy.typing import NDArray

IDENTITY_BYTES = 16
IDENTITY_KEY = token_bytes(32)  # random in every process, so that nobody can construct two pictures with one identity


class Stage(enum.Enum):
    """A station of one request; the keys of `Finished.seconds`."""

    QUEUE = "queue"  # before prefill, where all slots are taken
    PROMPT = "prompt"  # words and images' places to tokens and positions
    DECODE_IMAGES = "decode_images"
    PREPROCESS = "preprocess"
    VISION = "vision"
    PROJECTOR = "projector"
    PREFILL = "prefill"
    DECODE = "decode"
    DETOKENIZE = "detokenize"
    DELIVER = "deliver"  # the caller has the event, or not yet asked: a server receives and sends
    WAIT = "wait"  # between pieces of work: others' turns, and the switch between threads


class Priority(enum.IntEnum):
    """Who goes first where not all can; within one, clients take turns."""

    INTERACTIVE = 0  # somebody is waiting
    BATCH = 1  # nobody is
    BACKGROUND = 2  # a study's frames before they are asked about


class FinishReason(enum.Enum):
    """Why a generation ended."""

    STOP = "stop"  # the model wrote one of its stop tokens, or a stop text of the request
    LENGTH = "length"  # max_new_tokens, or the bundle's context, was reached
    CANCELLED = "cancelled"  # the caller went away or its deadline passed


@dataclass(frozen=True)
class FrameSelection:
    """Which frames of a multi-frame file to read.

    `indices` (0-based) wins over `evenly_spaced` (that many frames, spread from the first to the last).
    With neither, a single-frame file gives its frame and a cine gives its middle one.
    """

    indices: tuple[int, ...] = ()
    evenly_spaced: int = 0


@dataclass(frozen=True)
class OriginalFrames:
    """Where the frames of a shortened file come from: a sender may leave out the frames of a cine that are not asked for.

    Attributes:
        numbers: of each frame in the file, its place in the original, counted from 0.
        count: frames in the original.
    """

    numbers: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class ImageInput:
    """One encoded image file as it arrived.

    Args:
        data: the file's bytes, in any format that `imaging.image_file` reads.
        media_type: of the bytes, such as `application/dicom`, or empty to go by the bytes alone.
        name: what error messages call it, for example "image 2".
        selection: which frames of a cine.
        crop_to_regions: keep only the B-mode regions that a DICOM file declares.
        original: for a file that was shortened to the frames asked for; then all of its frames are read.
        image_tokens: most visual tokens of one of its frames; None: the engine's bound.
    """

    data: bytes | MemoryFile = field(repr=False)
    media_type: str = ""
    name: str = "image 1"
    selection: FrameSelection = field(default_factory=FrameSelection)
    crop_to_regions: bool = True
    original: OriginalFrames | None = None
    image_tokens: int | None = None

    def open(self) -> BinaryIO:
        """Open the file for reading, from its start; without a copy of it."""
        return BytesIO(self.data) if isinstance(self.data, bytes) else cast(BinaryIO, self.data.open())


class Resolution(NamedTuple):
    """What decides the size that a model sees a frame at: both sides are multiples of `unit`, the area is between the limits."""

    unit: int
    min_pixels: int
    max_pixels: int


class Box(NamedTuple):
    """A rectangle of pixels, the far edges exclusive."""

    left: int
    top: int
    right: int
    bottom: int


class Window(NamedTuple):
    """Grey values that were shown from black to white: those within `width` around `center`."""

    center: float
    width: float


@dataclass(frozen=True)
class Examination:
    """What a DICOM file says of what a frame shows; each field is empty or None where it says nothing usable.

    Attributes:
        laterality: "left", "right" or "both".
        body_part: BodyPartExamined, in capitals.
        reach_mm: the longest line that fits into a B-mode region of the frame.
    """

    laterality: str = field(default="", repr=False)
    body_part: str = field(default="", repr=False)
    reach_mm: float | None = None


@dataclass(frozen=True)
class Source:
    """What part of a file a frame shows, and how; so that nothing is done to a picture in silence.

    Attributes:
        index: the frame's place in the original file, counted from 0.
        count: frames in the original file; 1 for a still picture.
        height: of a whole frame in the file, in pixels, turned as it is shown.
        width: likewise.
        box: what was kept of it.
        window: of a grey picture with more than 8 bits or a window of its own; None where values are shown as they are.
        notes: what a person should know about it, a sentence each: "5 of 8 frames are there."
        examination: what the file says of it.
    """

    index: int
    count: int
    height: int
    width: int
    box: Box
    window: Window | None = None
    notes: tuple[str, ...] = ()
    examination: Examination = Examination()


@dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        pixels: uint8 [height, width, 3], RGB.
        name: what error messages call it.
        resolution: what it was resized for; None: the size in the file.
        origin: whose it is.
        source: where in its file it comes from; None for one that came from no file.
        image: the file's place in its call, counted from 1, or its number in its study; 0 for none.
        of_study: whether it is a study's.
        unlike_ultrasound: whether it hardly is an ultrasound picture, see `imaging.likeness`.
        image_tokens: the bound that `resolution` was made for, see `ImageInput`.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    name: str
    resolution: Resolution | None = None
    origin: Origin = ANYBODY
    source: Source | None = None
    image: int = 0
    of_study: bool = False
    unlike_ultrasound: bool = False
    image_tokens: int | None = None

    @cached_property
    def identity(self) -> bytes:
        """Identify the picture by its pixels as the model sees them, within this process: IDENTITY_BYTES of a keyed hash.

        Their height and width are part of it, so that one picture at two bounds (`image_tokens`) is two pictures to every cache.
        Kept, because a study's pictures are asked for it with every call, and hashing one takes a millisecond.
        """
        import numpy as np

        digest = blake2b(repr(self.pixels.shape).encode(), key=IDENTITY_KEY, digest_size=IDENTITY_BYTES)
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.digest()

    @cached_property
    def fingerprint(self) -> bytes:
        """What the picture looks like, to compare it with others; see `fingerprint_of`."""
        return fingerprint_of(self.pixels)


@dataclass(frozen=True)
class Picture:
    """What the model was shown of a file: `Frame` without its pixels.

    Attributes:
        image: see `Frame`.
        of_study: likewise.
        source: likewise.
        height: as the model sees it, in pixels.
        width: likewise.
        tokens: of the context that it takes.
        fingerprint: see `Frame`.
        unlike_ultrasound: likewise.
    """

    image: int
    of_study: bool
    source: Source
    height: int
    width: int
    tokens: int
    fingerprint: bytes = field(default=b"", repr=False)
    unlike_ultrasound: bool = False


def pictures(frames: Sequence[Frame]) -> tuple[Picture, ...]:
    """Describe the frames that came from a file and were resized for a model."""
    return tuple(
        _picture(frame, frame.source, frame.resolution) for frame in frames if frame.source and frame.resolution
    )


def _picture(frame: Frame, source: Source, resolution: Resolution) -> Picture:
    height, width = frame.pixels.shape[:2]
    tokens = height * width // resolution.unit**2
    of_frame = (frame.fingerprint, frame.unlike_ultrasound)
    return Picture(frame.image, frame.of_study, source, height, width, tokens, *of_frame)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy and the default.

    Raises:
        InvalidInput: an option is outside its range.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an option outside its range, by name."""
        checks = {
            "max_new_tokens must be at least 1": self.max_new_tokens >= 1,
            "temperature must be between 0 and 10": 0 <= self.temperature <= 10,
            "top_k must be 0 (no limit) or more": self.top_k >= 0,
            "top_p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "repetition_penalty must be between 0.1 and 10": 0.1 <= self.repetition_penalty <= 10,
        }
        for rule, holds in checks.items():
            if not holds:
                raise InvalidInput(f"Sampling option {rule}, got {getattr(self, rule.split()[0])}.")


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: what was asked about images, which come before the text, and the model's reply.

    Attributes:
        prompt: the text.
        images: encoded files.
        frames: pictures that were read already, a study's (see `ReportEngine.read_image`); they come before `images`.
        reply: the text that answered it; empty for the present turn.
    """

    prompt: str = field(repr=False)
    images: tuple[ImageInput, ...] = ()
    frames: tuple[Frame, ...] = ()
    reply: str = field(default="", repr=False)


@dataclass(frozen=True)
class GenerationRequest:
    """Images and a prompt, as one user turn, and the turns before it. Images come before the text, as the model was trained.

    Attributes:
        prompt: the text.
        images: encoded files.
        sampling: how tokens are chosen.
        frames: pictures that were read already, a study's (see `ReportEngine.read_image`); they come before `images`.
        priority: who goes first.
        client: whose turn it is counted as.
        scope: what is cached for this request is reused only by requests of the same scope.
        came: when the call arrived, by time.perf_counter; None: when the engine gets it.
        allow_mixed_studies: images of several studies of one patient are taken; of two patients they never are.
        system: the system prompt; empty for the chat template's own.
        earlier: the turns before this one, the first one first.
        stop: the text ends before the first of these, none of which is empty.
        log_probabilities: how many of the likeliest tokens to report for each place, beside the written one; None to report none.
        form: what the text must look like; None for any text.
    """

    prompt: str = field(repr=False)
    images: tuple[ImageInput, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    frames: tuple[Frame, ...] = ()
    priority: Priority = Priority.INTERACTIVE
    client: str = ""
    scope: str = ""
    came: float | None = None
    allow_mixed_studies: bool = False
    system: str = field(default="", repr=False)
    earlier: tuple[Turn, ...] = ()
    stop: tuple[str, ...] = field(default=(), repr=False)
    log_probabilities: int | None = None
    form: TextForm | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns, the present one last."""
        return (*self.earlier, Turn(self.prompt, self.images, self.frames))


@dataclass(frozen=True)
class StageStarted:
    """A stage began; sent once for each of decode_images, vision, prefill (and queue when it has to wait)."""

    stage: Stage


@dataclass(frozen=True)
class TextDelta:
    """The text that one or more new tokens completed: whole characters only; and the tokens, if that was asked for."""

    text: str = field(repr=False)
    probabilities: tuple[TokenProbability, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Span:
    """One piece of work: when it began, in seconds from the request's start, and how long it took.

    Spans of different threads overlap: see `clock.wall_time`.
    """

    stage: Stage
    start: float
    seconds: float


@dataclass(frozen=True)
class Finished:
    """The last event of every generation.

    Attributes:
        text: all of the generated text.
        token_ids: the generated tokens, a stop token included.
        finish_reason: why it ended.
        prompt_tokens: tokens of the prompt, image tokens included.
        image_tokens: how many of them stand for image patches.
        seconds: wall time by stage, each moment counted once, so that they add up; stages that did not run are absent.
        first_token_seconds: from the start of the request to the first token, or None when none came.
        spans: every piece of work in order, one for each image and token.
        reused_tokens: how many of the prompt's tokens came from the prefix cache.
        model: of the engine that wrote it, where that engine can be replaced meanwhile; else empty.
        bundle_id: likewise.
        pictures: what the model was shown, in order.
        probabilities: of all tokens of the text, if they were asked for. A stop token is one of them, what a stop text cut off is not.
        choices: how likely each of a form's choices is, in their order.
    """

    text: str = field(repr=False)
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    seconds: dict[Stage, float]
    first_token_seconds: float | None
    spans: tuple[Span, ...] = ()
    reused_tokens: int = 0
    model: str = ""
    bundle_id: str = ""
    pictures: tuple[Picture, ...] = ()
    probabilities: tuple[TokenProbability, ...] = field(default=(), repr=False)
    choices: tuple[ChoiceProbability, ...] = ()

    def with_span(self, span: Span) -> Finished:
        """Add a piece of work that came after all others."""
        seconds = self.seconds | {span.stage: self.seconds.get(span.stage, 0.0) + span.seconds}
        return replace(self, seconds=seconds, spans=(*self.spans, span))


Event = StageStarted | TextDelta | Finished
