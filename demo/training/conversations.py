"""Compose studies of single frames, draw exchanges about them, and lay both out as token ids."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from demo.checkpoint_files import CHAT_TEMPLATE, token_id
from demo.exchanges import ONE_FRAME, Exchange, exchange, exercise
from demo.prompts import Form
from demo.simulate import draw_shown
from demo.training.frames import TRAINING_SEEDS, truth_of
from demo.training.images import GRID
from demo.truth import Truth, without_finding
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary

MOST_FRAMES = 4  # of a study
# Harder to learn: the prompt is compared with the images.
COMPARING = (Form.JUDGE, Form.ASKED_JUDGE, Form.CHOICE, Form.ASKED_CHOICE, Form.RESTATED_CHOICE)
EXERCISES = 12  # one exchange in this many
TURNS = (1, 1, 2, 3)  # of a conversation, equally likely
TOKENIZER_STUDIES = 6000
PROMPT_WEIGHT = 0.2  # of an answer's, in the loss: who predicts a true statement word by word notices a false one


class StudyPool:
    """Studies of several frames, composed of frames that were simulated one by one: those of one study differ only in their finding."""

    def __init__(self, truths: Sequence[Truth]) -> None:
        self._frames: defaultdict[Truth, list[int]] = defaultdict(list)
        for index, truth in enumerate(truths):
            self._frames[truth].append(index)
        self._truths = [truth for truth in truths if without_finding(truth) in self._frames]  # few frames lack some

    def draw(self, frames: int, random: np.random.Generator) -> tuple[Truth, list[int]]:
        """Draw a study's truth, and the indices of its frames."""
        truth = self._truths[int(random.integers(len(self._truths)))]
        candidates = [self._frames[shown] for shown in draw_shown(truth, frames, random)]
        return truth, [same[random.integers(len(same))] for same in candidates]


def draw_exchange(truth: Truth, frames: int, random: np.random.Generator) -> Exchange:
    """Draw an exchange about a study: languages are equally likely, and so are forms, except COMPARING ones: twice as likely.

    One in `EXERCISES` is an exercise instead.
    """
    forms = [form for form in (*Form, *COMPARING) if frames == 1 or form not in ONE_FRAME]
    language = list(Language)[random.integers(len(Language))]
    if random.integers(EXERCISES) == 0:
        return exercise(truth, frames, language, random)
    return exchange(forms[random.integers(len(forms))], truth, frames, language, random)


def draw_conversations(
    truth: Truth, frames: int, exchanges: int, random: np.random.Generator
) -> list[tuple[Exchange, ...]]:
    """Draw so many exchanges about a study, in conversations of one or more turns."""
    drawn = [draw_exchange(truth, frames, random) for _ in range(exchanges)]
    conversations = []
    while drawn:
        turns = TURNS[random.integers(len(TURNS))]
        conversations.append(tuple(drawn[:turns]))
        drawn = drawn[turns:]
    return conversations


def tokenizer_texts() -> list[str]:
    """List the texts for training the tokenizer: the template's, and exchanges of every form."""
    random = np.random.default_rng(0)
    texts = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    for index in range(TOKENIZER_STUDIES):
        made = draw_exchange(truth_of(TRAINING_SEEDS + index), 1, random)
        texts += [made.prompt, made.answer]
    return texts


@dataclass(frozen=True)
class Beginning:
    """What all prompts about studies of one number of frames begin with, up to the last image token.

    Attributes:
        ids: int64 [p].
        is_image: bool [p].
        cos: [1, p, head_dim / 2], M-RoPE's angles; sin: likewise.
        next_position: the position of the token after it.
    """

    ids: Tensor
    is_image: Tensor
    cos: Tensor
    sin: Tensor
    next_position: int


@dataclass(frozen=True)
class Branches:
    """How conversations go on after their beginnings: each request's text and its answer, padded at the end.

    Attributes:
        studies: int64 [b], which study each is about.
        ids: int64 [b, s].
        is_text: bool [b, s], not padding.
        weights: [b, s], of predicting each token's successor: 0 for padding and for the last token.
        cos: [1, s, head_dim / 2], M-RoPE's angles; sin: likewise.
        claims: int64 [n, 2], row and column of each claim's last token.
        are_true: [n], 1 for a true claim, else 0.
    """

    studies: Tensor
    ids: Tensor
    is_text: Tensor
    weights: Tensor
    cos: Tensor
    sin: Tensor
    claims: Tensor
    are_true: Tensor


@dataclass(frozen=True)
class _Row:
    """One conversation: its token ids, the weight of predicting each one's successor, and its claims' last tokens."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    claims: Sequence[int]


def _last_tokens(turn: Exchange, asked: Encoding) -> list[int]:
    """Find the token that ends each claim in the tokens of its prompt."""
    found, end = list[int](), 0
    for claim in turn.claims:
        end = turn.prompt.lower().index(claim.text, end) + len(claim.text)
        found.append(next(index for index, (start, stop) in enumerate(asked.offsets) if start < end <= stop))
    return found


class Layout:
    """Lays conversations out as in serving: the chat template, the prompts' own positions."""

    def __init__(self, tokenizer: Tokenizer, config: EchoVLMConfig) -> None:
        self._prompts = PromptBuilder(tokenizer, CHAT_TEMPLATE, config.image_token_id, config.vision.spatial_merge_size)
        self._tokenizer = tokenizer
        self._rotary = MultimodalRotary(config.decoder.mrope_section, config.decoder.rope_theta)
        self._end, self._padding = token_id("<|im_end|>"), token_id("<|endoftext|>")
        self._after_images, self._after_answer, self._before_answer = (
            tokenizer.encode(text, add_special_tokens=False).ids
            for text in ("<|vision_end|>", "\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
        )

    def beginning(self, frames: int) -> Beginning:
        """Lay out the beginning of every prompt about this many frames."""
        prompt = self._prompts.build("", [GRID] * frames)
        length = int(prompt.image_rows[-1]) + 1
        is_image = np.isin(np.arange(length), prompt.image_rows)
        cos, sin = self._angles(prompt.positions[:, :length])
        ids, after = torch.from_numpy(prompt.token_ids[:length]), int(prompt.positions[0, length])
        return Beginning(ids, torch.from_numpy(is_image), cos, sin, after)

    def branches(
        self, beginning: Beginning, studies: Sequence[int], conversations: Sequence[Sequence[Exchange]]
    ) -> Branches:
        """Lay out the requests and answers of conversations that go on from `beginning`, and which study each is about."""
        rows = [self._row(turns) for turns in conversations]
        longest = max(len(row.ids) for row in rows)
        padding = [(0, longest - len(row.ids)) for row in rows]
        ids = np.stack(
            [np.pad(row.ids, pad, constant_values=self._padding) for row, pad in zip(rows, padding, strict=True)]
        )
        weights = np.stack([np.pad(row.weights, pad) for row, pad in zip(rows, padding, strict=True)])
        claims = [(index, column) for index, row in enumerate(rows) for column in row.claims]
        are_true = [float(claim.is_true) for turns in conversations for turn in turns for claim in turn.claims]
        cos, sin = self._angles(np.tile(beginning.next_position + np.arange(longest), (3, 1)))
        return Branches(
            torch.tensor(studies),
            torch.from_numpy(ids),
            torch.from_numpy(ids != self._padding),
            torch.from_numpy(weights),
            *(cos, sin),
            torch.tensor(claims, dtype=torch.int64).view(-1, 2),
            torch.tensor(are_true),
        )

    def _row(self, turns: Sequence[Exchange]) -> _Row:
        """Lay out the turns of one conversation, from the token that ends the images on."""
        ids, predicted, claims = list[int](), list[float](), list[int]()
        for turn in turns:
            begins = self._after_answer if ids else self._after_images
            answer = [*self._tokenizer.encode(turn.answer, add_special_tokens=False).ids, self._end]
            asked = self._tokenizer.encode(turn.prompt, add_special_tokens=False)
            request = [*begins, *asked.ids, *self._before_answer]
            claims += [len(ids) + len(begins) + place for place in _last_tokens(turn, asked)]
            # By the root of its length: a letter counts less than a report, but more than a token of one.
            predicted += [PROMPT_WEIGHT / math.sqrt(len(request))] * len(request)
            predicted += [1 / math.sqrt(len(answer))] * len(answer)
            ids += [*request, *answer]
        return _Row(np.array(ids), np.array([*predicted[1:], 0.0], np.float32), claims)

    def _angles(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        angles = self._rotary.angles(positions)
        return torch.from_numpy(angles.cos)[None], torch.from_numpy(angles.sin)[None]
