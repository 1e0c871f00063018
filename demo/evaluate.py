"""Evaluate a demo bundle through the gRPC server on simulated studies that it was not trained on, in every form of request.

python -m demo.evaluate --bundle bundles/demo --seed 0 --count 500 --json evaluation.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from demo.answers import Answer, Asked, ask
from demo.prompts import Form
from demo.scoring import Cell, Scores, by_form, score_reports
from demo.training.frames import TRAINING_SEEDS
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions


@dataclass(frozen=True)
class Evaluation:
    """A bundle's scores.

    Attributes:
        reports: scores of the default reports, by language and of both.
        cells: the share of right answers by form of request, language and number of frames.
        wrong: the answers that were not right.
    """

    reports: dict[str, Scores]
    cells: list[Cell]
    wrong: list[Answer]


def evaluate(bundle: Path, asked: Asked, console: Console) -> Evaluation:
    """Serve a bundle on loopback and score it.

    Raises:
        NotPossibleHere: seeds that were trained on, or a bundle that cannot be served.
    """
    if asked.seed + asked.count > TRAINING_SEEDS:
        raise NotPossibleHere(f"Seeds from {TRAINING_SEEDS} on were trained on: choose --seed and --count below.")
    server = ReportServer(ReportEngine.open(bundle), ServerOptions("127.0.0.1:0"))
    try:
        with Connection(server.address) as client:
            answers = ask(client, asked, console)
    finally:
        server.stop()
    reports = [answer for answer in answers if answer.asked.form is Form.REPORT]
    by_language = {one.value: [report for report in reports if report.asked.language is one] for one in Language}
    scores = {name: score_reports(chosen) for name, chosen in {**by_language, "both": reports}.items() if chosen}
    return Evaluation(scores, by_form(answers), [answer for answer in answers if not answer.right])


def _reports_table(title: str, scores: dict[str, Scores]) -> Table:
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


def _forms_table(title: str, cells: list[Cell]) -> Table:
    columns = sorted({cell.frames for cell in cells})
    headings = map(str, columns)
    table = new_table(title, names("form, frames:"), *map(figures, headings))
    for form in Form:
        shares = {cell.frames: cell.right for cell in cells if cell.form is form}
        if shares:
            table.add_row(form.value, *(f"{shares[frames]:.1%}" if frames in shares else "" for frames in columns))
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    default = Asked()
    parser = argparse.ArgumentParser(
        prog="demo.evaluate", description="Evaluate demo bundles on held-out simulated studies."
    )
    parser.add_argument("--bundle", type=Path, **SEVERAL, required=True, help="one bundle, or several to compare")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the first study")
    parser.add_argument("--count", type=int, default=default.count, help=f"studies (default {default.count})")
    parser.add_argument("--frames", type=int, default=default.most_frames, help="most frames of a study (default 4)")
    parser.add_argument("--blind", action="store_true", help="show a grey image: what the prompt alone gives away")
    parser.add_argument("--turns", type=int, default=default.turns, help="requests in one conversation (default 1)")
    parser.add_argument("--json", type=Path, metavar="F", help="write the scores, and the answers that were wrong")
    options = parser.parse_args(arguments)

    def command() -> int:
        if min(options.count, options.frames, options.turns) < 1 or options.seed < 0:
            raise NotPossibleHere(
                "There is nothing to evaluate: give --count, --frames and --turns of at least 1 and --seed of at least 0."
            )
        asked = Asked(options.seed, options.count, options.frames, blind=options.blind, turns=options.turns)
        written = {}
        for bundle in options.bundle:
            result = evaluate(bundle, asked, Console(stderr=True))
            title = f"{bundle}, {options.count} studies from seed {options.seed}"
            print_table(Console(), _reports_table(f"{title}: reports", result.reports))
            for language in Language:
                cells = [cell for cell in result.cells if cell.language is language]
                print_table(Console(), _forms_table(f"{title}: right answers, {language.value}", cells))
            written[str(bundle)] = _as_json(result)
        if options.json:
            settings = ("seed", "count", "most_frames", "blind", "turns")
            report = {name: getattr(asked, name) for name in settings}
            options.json.write_text(json.dumps({**report, "bundles": written}, indent=1), encoding="utf-8")
        return 0

    return run_command(command)


def _as_json(result: Evaluation) -> dict[str, object]:
    wrong = [
        {
            "seed": answer.study.seed,
            "frames": len(answer.study.images),
            "form": answer.asked.form.value,
            "prompt": answer.asked.prompt,
            "right": answer.asked.answer,
            "said": answer.text,
        }
        for answer in result.wrong
    ]
    cells = [asdict(cell) | {"form": cell.form.value, "language": cell.language.value} for cell in result.cells]
    return {"reports": {name: asdict(one) for name, one in result.reports.items()}, "forms": cells, "wrong": wrong}


if __name__ == "__main__":
    sys.exit(main())
