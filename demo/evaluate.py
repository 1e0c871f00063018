"""Evaluate a demo bundle through the gRPC server on simulated studies that it was not trained on.

python -m demo.evaluate --bundle bundles/demo --seed 0 --count 500 --json evaluation.json
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from demo import corpus
from demo.corpus import Facts
from demo.dicom_writer import dicom_bytes
from demo.simulate import Study, simulate
from demo.studies import TRAINING_SEEDS
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.request import ImageInput, Sampling
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions

SIZE_TOLERANCE = 0.2  # relative tolerance of a correct size
GREY = 110


@dataclass(frozen=True)
class Report:
    """The bundle's text about one study."""

    study: Study
    language: Language
    text: str

    @property
    def said(self) -> Facts:
        """Return the facts of the text."""
        return corpus.parse_report(self.text, self.language)


@dataclass(frozen=True)
class Scores:
    """Scores over a set of studies; shares are of the studies that have the fact.

    Attributes:
        studies: how many.
        region: share whose region is right; kind, side likewise.
        size: share of measured findings whose size is within 20 %.
        size_error_mm: mean absolute error of the sizes that were given.
        bleu1: against every phrasing of the true report, 0 to 100.
        rouge1: F-measure against the nearest phrasing, mean, 0 to 100; rougeL likewise.
    """

    studies: int
    region: float
    kind: float
    side: float
    size: float
    size_error_mm: float
    bleu1: float
    rouge1: float
    rougeL: float  # noqa: N815 (its name in the literature)


class _Words:
    """Tokenize like ROUGE: words, and each Chinese character separately."""

    def tokenize(self, text: str) -> list[str]:
        spaced = "".join(f" {character} " if ord(character) > 0x2E80 else character for character in text.lower())
        return "".join(character if character.isalnum() else " " for character in spaced).split()


def write_reports(client: Connection, studies: Sequence[Study], blind: bool, console: Console) -> list[Report]:
    """Request one report per study and language; `blind` sends a grey image of the same size instead."""
    reports = []
    for study in track(studies, "Evaluating", console=console):
        image = ImageInput(grey_png(study) if blind else dicom_bytes(study.image, study.truth, study.seed))
        for language in Language:
            request = ReportRequest(images=[image], language=language, sampling=Sampling(max_new_tokens=96))
            *_, last = client.generate(request)
            reports.append(Report(study, language, last.result.text))
    return reports


def grey_png(study: Study) -> bytes:
    """Make a uniform grey frame of a study's size."""
    buffer = io.BytesIO()
    Image.fromarray(np.full_like(study.image, GREY)).save(buffer, "PNG")
    return buffer.getvalue()


def score(reports: Sequence[Report]) -> Scores:
    """Compare reports with their studies' truths."""
    true, said = [corpus.facts(report.study.truth) for report in reports], [report.said for report in reports]
    pairs = list(zip(true, said, strict=True))
    sided = [(fact, read) for fact, read in pairs if fact.side]
    sized = [(fact.size_mm, read.size_mm) for fact, read in pairs if fact.size_mm]
    given = [(real, read) for real, read in sized if read is not None]
    right = [read is not None and abs(read - real) <= SIZE_TOLERANCE * real for real, read in sized]
    references = [corpus.every_report(report.study.truth, report.language) for report in reports]
    rouge = RougeScorer(["rouge1", "rougeL"], tokenizer=_Words())
    nearest = [rouge.score_multi(texts, report.text) for texts, report in zip(references, reports, strict=True)]
    return Scores(
        len(reports),
        _share([fact.region == read.region for fact, read in pairs]),
        _share([fact.kind == read.kind for fact, read in pairs]),
        _share([fact.side == read.side for fact, read in sided]),
        _share(right),
        float(np.mean([abs(read - real) for real, read in given])) if given else float("nan"),
        _bleu1([report.text for report in reports], references),
        100 * float(np.mean([scores["rouge1"].fmeasure for scores in nearest])),
        100 * float(np.mean([scores["rougeL"].fmeasure for scores in nearest])),
    )


def _bleu1(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    most = max(map(len, references))
    columns = [[texts[min(index, len(texts) - 1)] for texts in references] for index in range(most)]
    spaced = _Words()
    split = [[" ".join(spaced.tokenize(text)) for text in column] for column in columns]
    candidates = [" ".join(spaced.tokenize(text)) for text in texts]
    return float(BLEU(max_ngram_order=1, tokenize="none").corpus_score(candidates, split).score)


def _share(right: Sequence[bool]) -> float:
    return float(np.mean(right)) if right else float("nan")


def evaluate(bundle: Path, seed: int, count: int, blind: bool, console: Console) -> dict[str, Scores]:
    """Serve a bundle on loopback and score it: by language, and both.

    Raises:
        NotPossibleHere: seeds that were trained on, or a bundle that cannot be served.
    """
    if seed + count > TRAINING_SEEDS:
        raise NotPossibleHere(f"Seeds from {TRAINING_SEEDS} on were trained on: choose --seed and --count below.")
    server = ReportServer(ReportEngine.open(bundle), ServerOptions("127.0.0.1:0"))
    try:
        with Connection(server.address) as client:
            reports = write_reports(client, [simulate(number) for number in range(seed, seed + count)], blind, console)
    finally:
        server.stop()
    by_language = {one.value: [report for report in reports if report.language is one] for one in Language}
    return {name: score(chosen) for name, chosen in {**by_language, "both": reports}.items()}


def _table(title: str, scores: dict[str, Scores]) -> Table:
    headings = ("region", "kind", "side", "size\n±20 %", "error,\nmm", "BLEU\n-1", "ROUGE\n-1", "ROUGE\n-L")
    table = new_table(title, names("language"), *map(figures, headings))
    for language, one in scores.items():
        shares = (f"{share:.1%}" for share in (one.region, one.kind, one.side, one.size))
        table.add_row(
            language,
            *shares,
            f"{one.size_error_mm:.2f}",
            *(f"{text:.1f}" for text in (one.bleu1, one.rouge1, one.rougeL)),
        )
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="demo.evaluate", description="Evaluate demo bundles on held-out simulated studies."
    )
    parser.add_argument("--bundle", type=Path, **SEVERAL, required=True, help="one bundle, or several to compare")
    parser.add_argument("--seed", type=int, default=0, help="of the first study")
    parser.add_argument("--count", type=int, default=500, help="studies, each in both languages (default 500)")
    parser.add_argument("--blind", action="store_true", help="show a grey image: what the prompt alone gives away")
    parser.add_argument("--json", type=Path, metavar="F", help="write the scores")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)

    def command() -> int:
        if options.count < 1 or options.seed < 0:
            raise NotPossibleHere("There is nothing to evaluate: give --count of at least 1 and --seed of at least 0.")
        results = {}
        for bundle in options.bundle:
            results[str(bundle)] = evaluate(bundle, options.seed, options.count, options.blind, console)
            title = f"{bundle}, {options.count} studies from seed {options.seed}"
            print_table(Console(), _table(title, results[str(bundle)]))
        if options.json:
            written = {
                bundle: {name: asdict(one) for name, one in scores.items()} for bundle, scores in results.items()
            }
            report = {"seed": options.seed, "count": options.count, "blind": options.blind, "bundles": written}
            options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
