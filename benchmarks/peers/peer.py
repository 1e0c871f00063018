"""Define what a peer does and is asked, in types that every peer's own environment has: the standard library and numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

IMAGE_MARK = "<|vision_start|><|image_pad|><|vision_end|>"  # where the picture stands in a rendered prompt


class CannotTakePart(Exception):
    """A peer is not available on this computer; the text says why."""


@dataclass(frozen=True)
class Question:
    """One picture and a prompt about it.

    Attributes:
        name: in tables.
        picture: a file of pixels, uint8 [height, width, 3] as .npy, at the size that the model sees.
        patches: a file of the picture's patches, float32 [patches, patch_values] as .npy, for a peer's parity alone.
        grid: the patches in time, height and width.
        text: what the user asks.
        prompt: the rendered chat template of it, with `IMAGE_MARK` where the picture stands.
        token_ids: the prompt's tokens, one for each of the picture's.
        visual_tokens: how many of them are the picture's.
    """

    name: str
    picture: str
    patches: str
    grid: tuple[int, int, int]
    text: str
    prompt: str
    token_ids: tuple[int, ...]
    visual_tokens: int

    def pixels(self) -> NDArray[np.uint8]:
        """Read the picture."""
        found: NDArray[np.uint8] = np.load(self.picture)
        return found


@dataclass(frozen=True)
class Task:
    """What every peer is measured on.

    Attributes:
        folder: of what peers converted the checkpoint to.
        threads: of each peer.
        context: tokens that a sequence may take, where a peer wants to know.
        new_tokens: written after the first question; the others end with the first token.
        warm_up: about another picture, so that no runtime has a prompt's beginning in its cache.
        questions: asked one after the other.
        forced: tokens after the first question's prompt, at which parity compares logits.
    """

    folder: str
    threads: int
    context: int
    new_tokens: int
    warm_up: Question
    questions: tuple[Question, ...]
    forced: tuple[int, ...]

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Task:
        """Read what `write` wrote."""
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found["warm_up"] = _question(found["warm_up"])
        found["questions"] = tuple(_question(each) for each in found["questions"])
        return cls(**{**found, "forced": tuple(found["forced"])})


def _question(found: dict[str, Any]) -> Question:
    return Question(**{**found, "grid": tuple(found["grid"]), "token_ids": tuple(found["token_ids"])})


@dataclass(frozen=True)
class Answer:
    """What a peer reports for one question.

    Attributes:
        visual_tokens: of the picture.
        prompt_tokens: of the whole prompt.
        vision_seconds: vision encoder and projector.
        first_token_seconds: from the pixels to the first token.
        decode_seconds: from the first token to the last.
        written_tokens: how many it wrote, the first included.
    """

    visual_tokens: int
    prompt_tokens: int
    vision_seconds: float
    first_token_seconds: float
    decode_seconds: float
    written_tokens: int


class Peer(Protocol):
    """A runtime. `prepare` runs in our own process, everything else in a process and an environment of the peer's own."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def python(self) -> str:
        """Return the interpreter of its environment."""
        ...

    def prepare(self, folder: Path) -> None:
        """Install it and convert `checkpoint` in the folder, as far as that is not done.

        Raises:
            CannotTakePart: it is not available here.
        """
        ...

    def versions(self) -> Mapping[str, str]:
        """Return what it consists of, by name."""
        ...

    def load(self, task: Task) -> None:
        """Load the model, ready for the first question."""
        ...

    def ask(self, question: Question, new_tokens: int) -> Answer:
        """Answer greedily with exactly so many tokens, past the model's own end; nothing is cached from one call to the next."""
        ...

    def logits(self, task: Task) -> NDArray[np.float32]:
        """Compute the logits after the first question's prompt and after each forced token behind it: [1 + forced, vocab_size].

        It loads the model itself, `load` was not called before.
        """
        ...
