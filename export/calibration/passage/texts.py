"""Examples as the model reads them: decoded pictures cut to patches, and tokens with their positions."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from echovlm_edge.export.calibration.passage.examples import Example
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.bundle.calibration_pictures import picture_hash
from echovlm_edge.runtime.contracts.errors import NotPossibleHere, UserError
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import Patches, PreprocessSettings, patchify
from echovlm_edge.runtime.prompting.prompt import PromptBuilder

FEWEST_PICTURES = 16
PLAIN_WAY = "give more, or leave --calibrate away to round without data"


@dataclass(frozen=True)
class Picture:
    """One picture: its file's hash, and its patches."""

    hash: str
    patches: Patches


@dataclass(frozen=True)
class Text:
    """One sequence.

    Attributes:
        pictures: in the prompt's order.
        token_ids: int64 [n]; every merged patch has one image token.
        positions: int64 [3, n], M-RoPE's.
        image_rows: int64 [m], which tokens are image tokens.
        prompt: how many of the tokens are the prompt.
    """

    pictures: tuple[Picture, ...]
    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    image_rows: NDArray[np.int64]
    prompt: int

    @property
    def answered(self) -> bool:
        """Check whether an answer follows the prompt."""
        return len(self.token_ids) > self.prompt


def prepare(
    examples: Sequence[Example],
    checkpoint: Checkpoint,
    settings: PreprocessSettings,
    most_tokens: int,
    skipped: Callable[[str], None],
) -> list[Text]:
    """Decode and tokenize examples, drawn at random but always the same, up to `most_tokens` tokens.

    Args:
        examples: to draw from.
        checkpoint: whose tokenizer and template are used.
        settings: of the preprocessing.
        most_tokens: no further example is taken once they have so many tokens together.
        skipped: called with a sentence about each example that cannot be used.

    Raises:
        NotPossibleHere: fewer than `FEWEST_PICTURES` pictures can be used.
    """
    config = checkpoint.config
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    prompts = PromptBuilder(
        tokenizer, checkpoint.chat_template(), config.image_token_id, config.vision.spatial_merge_size
    )
    stop = checkpoint.stop_token_ids()[:1]
    drawn = list(examples)
    random.Random(0).shuffle(drawn)
    texts: list[Text] = []
    tokens = 0
    for example in drawn:
        if tokens >= most_tokens:
            break
        try:
            text = _text(example, prompts, stop, settings)
        except (UserError, OSError) as error:
            skipped(f"{example.pictures[0]} is left out of the calibration: {error}")
            continue
        if len(text.token_ids) > config.decoder.max_position_embeddings:
            skipped(f"{example.pictures[0]} is left out of the calibration: it has more tokens than the model reads.")
            continue
        texts.append(text)
        tokens += len(text.token_ids)
    usable = len({picture.hash for text in texts for picture in text.pictures})
    if usable < FEWEST_PICTURES:
        raise NotPossibleHere(
            f"Of the pictures for the calibration {usable} can be used, and it takes {FEWEST_PICTURES}: {PLAIN_WAY}."
        )
    return texts


def _text(example: Example, prompts: PromptBuilder, stop: Sequence[int], settings: PreprocessSettings) -> Text:
    pictures = tuple(_picture(path.read_bytes(), path.name, settings) for path in example.pictures)
    prompt = prompts.build(example.question, [picture.patches.grid for picture in pictures])
    answer = [*prompts.tokenizer.encode(example.answer, add_special_tokens=False).ids, *stop] if example.answer else []
    after = prompt.next_position + np.arange(len(answer))
    return Text(
        pictures,
        np.concatenate([prompt.token_ids, np.array(answer, np.int64)]),
        np.concatenate([prompt.positions, np.tile(after, (3, 1))], axis=1),
        prompt.image_rows,
        len(prompt.token_ids),
    )


def _picture(data: bytes, name: str, settings: PreprocessSettings) -> Picture:
    """Decode a file's first frame."""
    patches = patchify(decode_image(ImageInput(data, name=name))[0].pixels, settings)
    return Picture(picture_hash(data), patches)
