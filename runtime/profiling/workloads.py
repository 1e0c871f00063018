"""Define the workloads that every figure of the product is given for, and grids of others to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, smart_resize

TEMPLATE_TOKENS = 30  # of a prompt's text: the chat template and the frames' marks, which come before the question
PREPROCESS = PreprocessSettings()  # the published model's; none of the workloads reaches its bound on a frame's pixels


@dataclass(frozen=True)
class Workload:
    """One kind of request.

    Attributes:
        name: in tables, files and bounds.
        frames: pictures a request.
        text_tokens: of the prompt without the pictures' tokens; the chat template's are included.
        new_tokens: written, past the model's own end where it comes earlier.
        width: of a frame, pixels.
        height: of a frame, pixels.
        clients: that ask at the same time.
        seen: the frames have been reported on already, so that everything before the question is cached.
    """

    name: str
    frames: int
    text_tokens: int
    new_tokens: int
    width: int = 640
    height: int = 480
    clients: int = 1
    seen: bool = False

    @property
    def frame_tokens(self) -> int:
        """Return the visual tokens of one frame in the published model; a bundle with a lower limit on pixels has fewer."""
        height, width = smart_resize(self.height, self.width, PREPROCESS)
        return height * width // PREPROCESS.unit**2

    @property
    def encoded_frames(self) -> int:
        """Return the number of frames that the vision encoder works on."""
        return 0 if self.seen else self.frames

    @property
    def cached_tokens(self) -> int:
        """Return the tokens of the prompt that are prefilled already."""
        return self.frames * self.frame_tokens + TEMPLATE_TOKENS if self.seen else 0

    @property
    def prefill_tokens(self) -> int:
        """Return the tokens of the prompt that prefill works on."""
        return self.frames * self.frame_tokens + self.text_tokens - self.cached_tokens

    @property
    def words(self) -> str:
        """Describe it in a few words."""
        size = f"{self.width}x{self.height}"
        frames = f"a {size} frame" if self.frames == 1 else f"{_NUMBERS.get(self.frames, self.frames)} {size} frames"
        if self.seen:
            return f"a question about {frames} that are cached, {self.new_tokens} written"
        return f"{frames}, {self.text_tokens} tokens of text, {self.new_tokens} written"


_NUMBERS = {7: "seven"}

# A case is about seven frames: the model was trained on 208,941 cases with 1.47 million key frames.
W1 = Workload("W1", 1, 60, 160)
W7 = Workload("W7", 7, 60, 240)
Q = Workload("Q", 7, 60, 40, seen=True)
# 640x480 is what a scanner sends: 391 tokens a frame, as the published preprocessor bounds it. 392x392 is 196 tokens, as in training.
TRAINED_SIDE = 392
LARGE = (W1, W7, Q)
SMALL = tuple(
    replace(workload, name=f"{workload.name}-196", width=TRAINED_SIDE, height=TRAINED_SIDE) for workload in LARGE
)
USUAL = (*LARGE, *SMALL)
NAMED = {workload.name: workload for workload in USUAL}


def grid(
    frames: Sequence[int],
    sizes: Sequence[tuple[int, int]],
    text_tokens: Sequence[int],
    new_tokens: Sequence[int],
    clients: Sequence[int],
) -> tuple[Workload, ...]:
    """Return every combination, named for what it is: `2x640x480-p60-n32-c1`."""
    return tuple(
        Workload(f"{count}x{width}x{height}-p{prompt}-n{new}-c{at_once}", count, prompt, new, width, height, at_once)
        for count, (width, height), prompt, new, at_once in product(frames, sizes, text_tokens, new_tokens, clients)
    )


def size(text: str) -> tuple[int, int]:
    """Parse `640x480` to a width and a height.

    Raises:
        InvalidInput: it is not a size.
    """
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InvalidInput(f"{text} is no size of a frame: write for example 640x480.")
    return int(width), int(height)
