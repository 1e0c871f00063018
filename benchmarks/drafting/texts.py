"""The texts that drafting is measured with: reports for a table of phrases, and other reports, held out, that are then written.

They are those of files that are given, in the forms of `echovlm-build --phrases`; without files the demo's reports, whose few templates
make drafting easy, so that figures with them prove nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.qwen_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS, write_tokenizer
from demo.corpus import write_report
from demo.simulate import draw_truth
from echovlm_edge.export.bundle.phrases import tokenized
from echovlm_edge.export.bundle.report_texts import ReportText, read_reports
from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tasks import Language

HELD = 300  # reports that are written
DEMO_STUDIES = 2000
DEMO_NOTE = (
    "The demo's reports have few templates, which makes them easy to draft: these figures prove nothing about others."
)


@dataclass(frozen=True)
class Texts:
    """Token ids of reports in the published vocabulary, each with the token at its end; no held text is in the store.

    Attributes:
        name: where they are from.
        store: reports that phrases are counted in.
        studies: the number of each one's study, ascending.
        held: other studies' reports.
        note: what to know of figures with them.
    """

    name: str
    store: list[list[int]]
    studies: list[int]
    held: list[list[int]]
    note: str = ""


def add_captions(parser: argparse.ArgumentParser) -> None:
    """Declare the option that names the reports."""
    parser.add_argument(
        "--captions",
        type=Path,
        **SEVERAL,
        metavar="FILE",
        help="reports: text files with one on each line, folders of .txt files, or JSON files in the authors' format (default: the demo's)",
    )


def drafting_texts(captions: list[Path] | None) -> Texts:
    """Read the reports that `--captions` names, or make the demo's; studies are held out by their texts' hash.

    Raises:
        InvalidInput: a file cannot be read.
        NotPossibleHere: there are too few reports to hold some out.
    """
    found = read_reports(captions, print) if captions else demo_reports()
    name = _named(captions) if captions else "the demo"
    studies = [list(texts) for _, texts in groupby(found, key=lambda text: text.study)]
    studies.sort(key=lambda texts: hashlib.sha256(texts[0].text.encode()).digest())
    held, store = studies[:HELD], studies[HELD:]
    if len(store) < HELD:
        raise NotPossibleHere(
            f"There are {len(studies)} reports, and it takes at least {2 * HELD}: give more --captions."
        )
    known = {text.text for texts in store for text in texts}
    stored = [text for texts in store for text in texts]
    written = [text for texts in held for text in texts if text.text not in known]
    numbers = [number for number, texts in enumerate(store) for _ in texts]
    stop = FIRST_SPECIAL_ID + SPECIAL_TOKENS.index("<|im_end|>")
    tokenizer = qwen_tokenizer()
    ids = (tokenized(texts, tokenizer, stop) for texts in (stored, written))
    return Texts(name, next(ids), numbers, next(ids), "" if captions else DEMO_NOTE)


def _named(captions: list[Path]) -> str:
    return captions[0].name if len(captions) == 1 else f"{len(captions)} files"


def demo_reports() -> list[ReportText]:
    """Write reports of the demo's studies, in both languages by turns, each text once."""
    texts = {}
    for seed in range(DEMO_STUDIES):
        random = np.random.default_rng(seed)
        truth = draw_truth(random)
        texts[write_report(truth, list(Language)[seed % 2], random)] = seed
    return [ReportText(text, seed) for text, seed in texts.items()]


def qwen_tokenizer() -> Tokenizer:
    """Make the published tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
