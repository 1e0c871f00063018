"""Compose studies of single frames, draw exchanges about them, and lay both out as token ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from demo.checkpoint_files import CHAT_TEMPLATE, token_id
from demo.exchanges import ONE_FRAME, Exchange, exchange, exercise
from demo.prompts import Form
from demo.simulate import draw_shown
from demo.training.frames import TRAINING_SEEDS, truth_of
from demo.training.images import GRID
from demo.truth import Truth, without_finding
from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary

MOST_FRAMES = 4  # of a study
COMPARING = (Form.JUDGE, Form.CHOICE, Form.RESTATED_CHOICE)  # harder to learn: the prompt is compared with the images
EXERCISES = 12  # one exchange in this many
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
    """Draw an exchange about a study: languages are equally likely, and so are forms, except COMPARING ones: three times as likely.

    One in `EXERCISES` is an exercise instead.
    """
    forms = [form for form in (*Form, *COMPARING, *COMPARING) if frames == 1 or form not in ONE_FRAME]
    language = list(Language)[random.integers(len(Language))]
    if random.integers(EXERCISES) == 0:
        return exercise(truth, frames, language, random)
    return exchange(forms[random.integers(len(forms))], truth, frames, language, random)


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
    """

    ids: Tensor
    is_image: Tensor
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True)
class Branches:
    """How conversations go on after their beginnings: the request's text and its answer, padded at the end.

    Attributes:
        beginnings: int64 [b], which beginning each goes on from.
        ids: int64 [b, s].
        is_text: bool [b, s], not padding.
        weights: [b, s], of predicting each token's successor: 0 for padding and for the last token.
        cos: [1, s, head_dim / 2], M-RoPE's angles; sin: likewise.
    """

    beginnings: Tensor
    ids: Tensor
    is_text: Tensor
    weights: Tensor
    cos: Tensor
    sin: Tensor


class Layout:
    """Lays conversations out as in serving: the chat template, the prompts' own positions."""

    def __init__(self, tokenizer: Tokenizer, config: EchoVLMConfig) -> None:
        self._prompts = PromptBuilder(tokenizer, CHAT_TEMPLATE, config.image_token_id, config.vision.spatial_merge_size)
        self._tokenizer = tokenizer
        self._rotary = MultimodalRotary(config.decoder.mrope_section, config.decoder.rope_theta)
        self._end, self._padding = token_id("<|im_end|>"), token_id("<|endoftext|>")

    def beginning(self, frames: int) -> Beginning:
        """Lay out the beginning of every prompt about this many frames."""
        prompt = self._prompts.build("", [GRID] * frames)
        length = int(prompt.image_rows[-1]) + 1
        is_image = np.isin(np.arange(length), prompt.image_rows)
        cos, sin = self._angles(prompt.positions[:, :length])
        return Beginning(torch.from_numpy(prompt.token_ids[:length]), torch.from_numpy(is_image), cos, sin)

    def branches(self, frames: int, beginnings: Sequence[int], exchanges: Sequence[Exchange]) -> Branches:
        """Lay out one request and its answer for each exchange."""
        sequences, prompt_lengths = [], []
        first = 0
        for made in exchanges:
            prompt = self._prompts.build(made.prompt, [GRID] * frames)
            begins = int(prompt.image_rows[-1]) + 1
            first = int(prompt.positions[0, begins])
            answer = self._tokenizer.encode(made.answer, add_special_tokens=False).ids
            sequences.append([*prompt.token_ids[begins:].tolist(), *answer, self._end])
            prompt_lengths.append(len(prompt.token_ids) - begins)
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        longest = int(lengths.max())
        ids = torch.tensor([sequence + [self._padding] * (longest - len(sequence)) for sequence in sequences])
        columns = torch.arange(longest)
        starts = torch.tensor(prompt_lengths)[:, None]
        ends = lengths[:, None]
        # By the root of its length: a letter counts less than a report, but more than a token of one.
        in_answer, in_prompt = (ends - starts).float().rsqrt(), starts.float().rsqrt().mul(PROMPT_WEIGHT)
        weights = torch.where(columns >= starts - 1, in_answer, in_prompt) * (columns < ends - 1)
        cos, sin = self._angles(np.tile(np.arange(first, first + longest), (3, 1)))
        return Branches(torch.tensor(beginnings), ids, columns < ends, weights, cos, sin)

    def _angles(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        angles = self._rotary.angles(positions)
        return torch.from_numpy(angles.cos)[None], torch.from_numpy(angles.sin)[None]
