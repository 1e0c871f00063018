"""Make the table of phrases that a bundle brings, from the texts of reports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from echovlm_edge.export.build_options import SHARED_BY, PhraseOptions
from echovlm_edge.export.bundle.report_texts import ReportText, read_reports
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.bundle.manifest import KeptPhrases
from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable


@dataclass(frozen=True)
class MadePhrases:
    """A table of phrases, and what bundle.json says about it."""

    table: PhraseTable
    kept: KeptPhrases


def add_phrases(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `echovlm-build` about phrases."""
    add = parser.add_argument
    add(
        "--phrases",
        type=Path,
        **SEVERAL,
        metavar="FILE",
        help="reports from whose phrases the runtime guesses next tokens, so that it writes faster and the same text: text files with a "
        "report on each line, folders of .txt files, or JSON files in the authors' format",
    )
    add(
        "--phrases-shared-by",
        type=int,
        metavar="N",
        help=f"keep only phrases that at least N of these reports have, so that no single patient's text is kept (default {SHARED_BY})",
    )


def phrase_options(arguments: argparse.Namespace) -> PhraseOptions | None:
    """Read the two options; None without `--phrases`.

    Raises:
        NotPossibleHere: `--phrases-shared-by` without it.
    """
    if arguments.phrases is None:
        if arguments.phrases_shared_by is not None:
            raise NotPossibleHere("--phrases-shared-by belongs to a table of phrases: give --phrases with it.")
        return None
    shared_by = SHARED_BY if arguments.phrases_shared_by is None else arguments.phrases_shared_by
    return PhraseOptions(tuple(arguments.phrases), shared_by)


def make_phrases(wish: PhraseOptions | None, checkpoint: Checkpoint, progress: Progress) -> MadePhrases | None:
    """Read the reports that `--phrases` names and count their phrases; None without that option. It takes seconds.

    Raises:
        InvalidInput: a source cannot be read, or has no report.
        NotPossibleHere: too few of the reports share a phrase.
    """
    if wish is None:
        return None
    with progress.stage("Counting phrases"):
        texts = read_reports(wish.sources, progress.note)
        tokens = tokenized(texts, Tokenizer.from_str(checkpoint.tokenizer_json()), checkpoint.stop_token_ids()[0])
        studies = [text.study for text in texts]
        table, everything = (PhraseTable.build(tokens, least, studies) for least in (wish.shared_by, 1))
    reports = studies[-1] + 1
    if not len(table):
        raise NotPossibleHere(
            f"No {wish.shared_by} of the {reports} reports of --phrases share a phrase: give more reports, or a lower "
            "--phrases-shared-by."
        )
    return MadePhrases(table, KeptPhrases(reports, wish.shared_by, len(table), len(everything)))


def tokenized(texts: Sequence[ReportText], tokenizer: Tokenizer, stop: int) -> list[list[int]]:
    """Return the token ids of texts as the model writes them, each with the token at its end."""
    encoded = tokenizer.encode_batch([each.text for each in texts], add_special_tokens=False)
    return [[*each.ids, stop] for each in encoded]
