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
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
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


def ask(
    client: Connection, seeds: Sequence[int], forms: Iterable[Form], most_frames: int, blind: bool, console: Console
) -> list[Answer]:
    """Ask about one study per seed, of 1 to `most_frames` frames in turn, in every form and language.

    Args:
        client: of the server.
        seeds: of the studies.
        forms: of the requests.
        most_frames: of a study.
        blind: send grey images of the same size instead: what the prompts alone give away.
        console: for progress.
    """
    answers: list[Answer] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for seed in track(seeds, "Evaluating", console=console):
            study = simulate(seed, 1 + seed % most_frames)
            images = study_images(study, blind)
            asked = list(_requests(study, forms))
            texts = pool.map(lambda one, images=images: _text(client, images, one), asked)
            answers += [Answer(study, one, text) for one, text in zip(asked, texts, strict=True)]
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


def _requests(study: Study, forms: Iterable[Form]) -> Iterator[Exchange]:
    frames = len(study.images)
    for form, language in product(forms, Language):
        if frames == 1 or form not in ONE_FRAME:
            random = np.random.default_rng([study.seed, *f"{form.value}, {language.value}".encode()])
            yield exchange(form, study.truth, frames, language, random)


def _text(client: Connection, images: list[ImageInput], asked: Exchange) -> str:
    request = ReportRequest(
        asked.task,
        images,
        asked.text,
        language=asked.language,
        region=asked.region,
        sampling=Sampling(max_new_tokens=MOST_TOKENS),
    )
    *_, last = client.generate(request)
    return last.result.text
