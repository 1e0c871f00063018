"""Ask a served demo bundle about held-out studies, in every form of request."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from demo.dicom_writer import dicom_bytes
from demo.exchanges import ONE_FRAME, Exchange, exchange, is_right
from demo.prompts import Form
from demo.simulate import Study, simulate
from demo.training.conversations import MOST_FRAMES
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import EarlierTurn, ReportRequest
from echovlm_edge.runtime.contracts.request import ImageInput, Sampling
from echovlm_edge.runtime.contracts.tasks import Language

AT_ONCE = 8  # requests, which the server decodes together
MOST_TOKENS = 96
GREY = 110


@dataclass(frozen=True)
class Answer:
    """What a bundle answered to one request about a study."""

    study: Study
    asked: Exchange
    text: str

    @property
    def right(self) -> bool:
        """Return whether region, kind and side are right, as far as they were asked for, in the language that was asked."""
        return is_right(self.asked, self.study.truth, self.text)


@dataclass(frozen=True)
class Asked:
    """What a bundle is asked about: `count` studies from `seed` on, of 1 to `most_frames` frames in turn, in every form and language.

    Attributes:
        seed: of the first study.
        count: of studies.
        most_frames: of a study.
        forms: of the requests.
        blind: whether grey images of the same size are sent instead: what the prompts alone give away.
        turns: of a conversation: that many requests about a study are asked one after the other, in any order.
    """

    seed: int = 0
    count: int = 500
    most_frames: int = MOST_FRAMES
    forms: tuple[Form, ...] = tuple(Form)
    blind: bool = False
    turns: int = 1


def ask(client: Connection, asked: Asked, console: Console) -> list[Answer]:
    """Ask a server, with progress on the console."""
    answers: list[Answer] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for seed in track(range(asked.seed, asked.seed + asked.count), "Evaluating", console=console):
            study = simulate(seed, 1 + seed % asked.most_frames)
            images = study_images(study, asked.blind)
            conversations = list(_conversations(study, asked.forms, asked.turns))
            replies = pool.map(lambda one, images=images: _converse(client, images, one), conversations)
            for turns, texts in zip(conversations, replies, strict=True):
                answers += [Answer(study, one, text) for one, text in zip(turns, texts, strict=True)]
    return answers


def study_images(study: Study, blind: bool = False) -> list[ImageInput]:
    """Make the files of a study's frames: DICOM, or grey PNGs."""
    return [
        ImageInput(grey_png(study) if blind else dicom_bytes(image, study.truth, study.seed, number))
        for number, image in enumerate(study.images, 1)
    ]


def grey_png(study: Study) -> bytes:
    """Make a uniform grey frame of a study's size."""
    buffer = io.BytesIO()
    Image.fromarray(np.full_like(study.image, GREY)).save(buffer, "PNG")
    return buffer.getvalue()


def _conversations(study: Study, forms: Iterable[Form], turns: int) -> Iterator[list[Exchange]]:
    frames = len(study.images)
    exchanges = []
    for form, language in product(forms, Language):
        if frames == 1 or form not in ONE_FRAME:
            random = np.random.default_rng([study.seed, *f"{form.value}, {language.value}".encode()])
            exchanges.append(exchange(form, study.truth, frames, language, random))
    if turns > 1:
        np.random.default_rng(study.seed).shuffle(exchanges)
    for start in range(0, len(exchanges), turns):
        yield exchanges[start : start + turns]


def _converse(client: Connection, images: list[ImageInput], turns: Sequence[Exchange]) -> list[str]:
    """Ask one request after the other; the images are those of the first."""
    earlier: list[EarlierTurn] = []
    for asked in turns:
        request = ReportRequest(
            asked.task,
            () if earlier else images,
            asked.text,
            language=asked.language,
            region=asked.region,
            sampling=Sampling(max_new_tokens=MOST_TOKENS),
            earlier=tuple(earlier),
        )
        *_, last = client.generate(request)
        earlier.append(EarlierTurn(last.result.prompt, last.result.text, () if earlier else images))
    return [turn.reply for turn in earlier]
