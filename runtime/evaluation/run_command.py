"""`echovlm-evaluate run`: ask a model the questions of a data set, score its answers, show and write the figures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from echovlm_edge.runtime.bundle.calibration_pictures import picture_hash, refuse_overlap
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.bundle.signers import add_signers, read_signers
from echovlm_edge.runtime.client.command_options import (
    add_credentials,
    add_image_tokens,
    add_sampling,
    read_credentials,
    read_sampling,
)
from echovlm_edge.runtime.client.wire.attempts import Retries
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.evaluation import table
from echovlm_edge.runtime.evaluation.asking.answers import ask_all
from echovlm_edge.runtime.evaluation.asking.journal import Answer, Journal
from echovlm_edge.runtime.evaluation.asking.targets import InProcess, Remote, Target
from echovlm_edge.runtime.evaluation.data.recognition import RowTask
from echovlm_edge.runtime.evaluation.data.rows import BadRow, Overrides, Row, read_rows
from echovlm_edge.runtime.evaluation.drawing.evaluation_page import evaluation_page
from echovlm_edge.runtime.evaluation.figures import figures
from echovlm_edge.runtime.evaluation.notes import notes
from echovlm_edge.runtime.evaluation.published import PRESETS
from echovlm_edge.runtime.evaluation.schema import (
    FILE,
    VERSION,
    Evaluation,
    ModelFacts,
    ScoredRow,
    Settings,
    SkippedRow,
    to_json,
)
from echovlm_edge.runtime.evaluation.scored import scored
from echovlm_edge.runtime.evaluation.scoring.bert import BertScore
from echovlm_edge.runtime.evaluation.scoring.catalogue import metrics_of, scorers
from echovlm_edge.runtime.evaluation.scoring.metric import Scorer
from echovlm_edge.runtime.profiling.drawing.rendering import plotting_library
from echovlm_edge.runtime.resources.atomic_file import write_whole

ALL_ROWS, ROWS_SKIPPED = 0, 1  # 2 is a user's error: see `runtime.contracts.command`
EXIT_CODES = (
    "Exit codes: 0 every row was evaluated; 1 rows were skipped, and are named; 2 a wrong option or file; 3 the server stayed busy; "
    "4 it cannot be reached; 130 interrupted. A run that ended early continues when it is started again with the same --output."
)
PAGE = "evaluation.html"
AT_ONCE = 8
CONNECT_SECONDS = 10.0
BUSY_ATTEMPTS = 100  # a call of batch priority waits until the server has room


def run(options: argparse.Namespace) -> int:
    """Ask, score, show and write; returns the exit code."""
    if bool(options.bundle) == bool(options.server):
        raise InvalidInput("Give --bundle to ask a model in this process, or --server to ask one that runs.")
    if options.concurrency < 1:
        raise InvalidInput(f"--concurrency {options.concurrency} asks nothing: give at least 1.")
    sampling = _sampling(options)
    library = plotting_library(f"{PAGE} cannot be written")
    further = (BertScore.open(options.bertscore, options.bertscore_baseline),) if options.bertscore else ()
    overrides = Overrides(
        RowTask(options.task) if options.task else None,
        Region(options.region) if options.region else None,
        Language(options.language) if options.language else None,
    )
    rows, bad = read_rows(options.data, options.images, overrides)
    scoring = scorers(*further)
    answers, refused, where, facts = _answers(options, rows, sampling)
    scored = _scored(rows, answers, options.images, scoring)
    skipped = tuple(SkippedRow(row.number, row.name, row.reason) for row in sorted((*bad, *refused), key=_number))
    metrics = metrics_of(scoring)
    evaluation = Evaluation(
        "echovlm-evaluate",
        VERSION,
        datetime.now(UTC).isoformat(timespec="seconds"),
        where,
        tuple(file.name for file in options.data),
        Settings(facts, **asdict(sampling)),
        metrics,
        figures(scored, metrics),
        scored,
        skipped,
        notes(scored, skipped, sampling),
    )
    write_whole(options.output / FILE, to_json(evaluation))
    write_whole(options.output / PAGE, evaluation_page(evaluation, options.images, library).encode())
    table.print_evaluation(Console(), evaluation)
    return ROWS_SKIPPED if skipped else ALL_ROWS


def _number(row: BadRow) -> int:
    return row.number


def _sampling(options: argparse.Namespace) -> Sampling:
    """Read the options of sampling: those of the preset, where it is given, but for those given themselves."""
    if not options.preset:
        return read_sampling(options)
    preset, default = asdict(PRESETS[options.preset]), asdict(Sampling())
    chosen = {name: getattr(options, name) for name in default if getattr(options, name) != default[name]}
    return Sampling(**(preset | chosen))


def _answers(
    options: argparse.Namespace, rows: Sequence[Row], sampling: Sampling
) -> tuple[dict[str, Answer], list[BadRow], str, ModelFacts]:
    """Ask the rows that the journal has no answer of; returns all answers by key, the rows refused, and who answered."""
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotPossibleHere(f"--output {options.output} cannot be made ({error.strerror}).") from None
    refused = list[BadRow]()
    with ExitStack() as stack:
        target = _target(options, stack)
        facts = target.facts()
        pictures = {path for row in rows for path in row.pictures}
        refuse_overlap(target.calibration_pictures(), (picture_hash(path.read_bytes()) for path in pictures))
        journal = stack.enter_context(Journal(options.output, Settings(facts, **asdict(sampling)), options.restart))
        if strange := journal.answers.keys() - {row.key for row in rows}:
            raise InvalidInput(
                f"{journal.path} holds {len(strange)} answers about questions, answers or pictures that the data does not have now: give "
                "another --output, or --restart to ask all rows again."
            )
        left = [row for row in rows if row.key not in journal.answers]
        with _progress() as progress:
            task = progress.add_task("Asking", total=len(rows), completed=len(rows) - len(left), rate="")
            started = time.monotonic()
            asked = stack.enter_context(closing(ask_all(target, left, sampling, options.concurrency)))
            for done, (row, answer) in enumerate(asked, 1):
                if isinstance(answer, Answer):
                    journal.add(row.key, answer)
                else:
                    refused.append(BadRow(row.number, row.name, f"was refused: {str(answer).rstrip('.')}"))
                rate = done / (time.monotonic() - started)
                progress.update(
                    task, advance=1, rate=f"{rate:.1f} rows/s" if rate >= 1 else f"{60 * rate:.1f} rows/min"
                )
        answers = dict(journal.answers)
    if not answers:
        raise InvalidInput(f"No row was answered; {refused[0].name} {refused[0].reason}.")
    return answers, refused, target.where, facts


def _target(options: argparse.Namespace, stack: ExitStack) -> Target:
    signers = read_signers(options)
    if options.server:
        connection = Connection(options.server, read_credentials(options), Retries(BUSY_ATTEMPTS))
        stack.enter_context(connection).wait_until_ready(CONNECT_SECONDS)
        return Remote(connection, options.server, options.timeout, options.image_tokens)
    from echovlm_edge.runtime.engine.engine_options import EngineOptions
    from echovlm_edge.runtime.engine.report_engine import ReportEngine

    bundle = Bundle(options.bundle)
    slots = min(options.concurrency, bundle.manifest.most_slots or options.concurrency)
    chosen = EngineOptions(slots=slots, image_tokens=options.image_tokens)
    engine = ReportEngine.open(bundle.path, threads=options.threads, signers=signers, options=chosen)
    stack.callback(engine.close)
    return InProcess(engine)


def _scored(
    rows: Sequence[Row], answers: dict[str, Answer], images: Path, scoring: Sequence[Scorer]
) -> tuple[ScoredRow, ...]:
    answered = [(row, answers[row.key]) for row in rows if row.key in answers]
    with _progress() as progress:
        task = progress.add_task("Scoring", total=len(answered), rate="")
        found = []
        for row, answer in answered:
            found.append(scored(row, answer, images, scoring))
            progress.advance(task)
    return tuple(found)


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def add_command(commands: Any) -> None:
    """Declare the command and its options."""
    made = commands.add_parser(
        "run",
        help="ask and score",
        description="Ask a model the questions of a data set, score its answers, write evaluation.json and evaluation.html.",
        epilog=EXIT_CODES,
    )
    made.set_defaults(run=run)
    add = made.add_argument
    add("--bundle", type=Path, metavar="DIR", help="folder that echovlm-build made: asked in this process")
    add("--server", metavar="HOST:PORT", help="ask this server instead")
    add_signers(made)
    add("--data", type=Path, **SEVERAL, required=True, metavar="FILE.json", help="rows in one of the authors' formats")
    add(
        "--images", type=Path, required=True, metavar="DIR", help="the folder that the rows' paths of pictures begin in"
    )
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="for the answers, the figures and the page; resumes a run that is there",
    )
    add("--restart", action="store_true", help="drop the answers that --output has, and ask all rows again")
    add("--concurrency", type=int, default=AT_ONCE, metavar="N", help=f"questions at once (default {AT_ONCE})")
    add(
        "--task",
        choices=[task.value for task in RowTask],
        help="what all rows ask (default: each row's task, or by its question)",
    )
    add(
        "--region",
        choices=[region.value for region in Region],
        help="of all rows (default: each row's region, or by its text)",
    )
    add(
        "--language",
        choices=[language.value for language in Language],
        help="of all rows (default: each row's language, or by its text)",
    )
    add(
        "--preset",
        choices=list(PRESETS),
        help="the authors' generation settings; options of sampling replace single ones",
    )
    add_sampling(made)
    add_image_tokens(made)
    add(
        "--bertscore",
        type=Path,
        metavar="DIR",
        help="compute BERTScore with this folder's model; nothing is downloaded",
    )
    add(
        "--bertscore-baseline",
        type=Path,
        metavar="F",
        help="for rescaling it (default: for bert-base-chinese the authors' own, else none)",
    )
    add("--threads", type=int, metavar="N", help="of --bundle (default: one per processor that may be used)")
    add("--timeout", type=float, metavar="SECONDS", help="of --server: skip a row that takes longer")
    add_credentials(made)
