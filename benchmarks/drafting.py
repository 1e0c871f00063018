"""Measure what drafting saves (`make bench-drafting`): a decoder of the published width that is made to write held-out reports.

python -m benchmarks.drafting [--captions FILE…] [--layers 4] [--kernels avx2] [--json build/drafting.json]

With and without drafts in turn, for several sequences at once. Drafts come from a table of other reports' phrases, as a bundle has, and
from the text itself; the memory of the client's replies is off. Tokens a second are those of steps in which all sequences write.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.chosen_kernels import add_kernels, use_kernels
from benchmarks.drafting_texts import Texts, add_captions, drafting_texts
from benchmarks.forced_text import ForcedText, Steps, full_steps
from benchmarks.make_checkpoint import published_config
from benchmarks.random_bundle import random_bundle
from echovlm_edge.export.build_options import SHARED_BY, BuildOptions
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, Sampling
from echovlm_edge.runtime.contracts.tables import figures, new_table, print_table, words
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.profiling.measurement.machine import this_machine
from echovlm_edge.runtime.prompting.prompt import PromptBuilder

SEQUENCES = 1, 4, 8
LENGTH = 160  # tokens of a text, as of W1's report: several held-out reports, one after the other
CONTEXT = 512
FIRST_MARKER = 1000  # the first token that may mark a prompt


@dataclass(frozen=True)
class Row:
    """So many sequences at once, with or without drafting; a step is a call of the decoder."""

    sequences: int
    drafting: bool
    tokens_per_second: float
    tokens_per_step: float
    rows_per_step: float
    milliseconds_per_step: float
    steps: int


class Writers:
    """The same decoder behind two engines, of which one drafts."""

    def __init__(self, bundle: Bundle, texts: Sequence[Sequence[int]], table: PhraseTable, threads: int | None) -> None:
        """Load the bundle, and give each text a marker."""
        prompts = PromptBuilder.from_bundle(bundle)
        self._markers = dict(zip(_markers(prompts, len(texts)), texts, strict=True))
        self._tokenizer = prompts.tokenizer
        prompt_tokens = len(prompts.build(prompts.tokenizer.decode([next(iter(self._markers))]), []).token_ids)
        self.backend = ForcedText(OnnxRuntimeBackend(bundle, threads), self._markers, prompt_tokens)
        options = EngineOptions(max(SEQUENCES), 0, 0, reply_bytes=0)
        self.engines = {
            drafting: ReportEngine(bundle, self.backend, CONTEXT, replace(options, drafting=drafting), phrases=table)
            for drafting in (False, True)
        }

    def write(self, first: int, sequences: int, drafting: bool) -> Steps:
        """Write texts from `first` on at the same time, and check that they are what was written."""
        chosen = [list(self._markers)[(first + number) % len(self._markers)] for number in range(sequences)]
        self.backend.calls = []
        with ThreadPoolExecutor(sequences) as pool:
            list(pool.map(lambda marker: self._write(marker, self.engines[drafting]), chosen))
        return full_steps(self.backend.calls, sequences)

    def _write(self, marker: int, engine: ReportEngine) -> None:
        text = self._markers[marker]
        request = GenerationRequest(self._tokenizer.decode([marker]), sampling=Sampling(len(text)), client=str(marker))
        *_, last = engine.generate(request)
        assert isinstance(last, Finished)
        assert list(last.token_ids) == list(text), "the engine wrote another text"

    def close(self) -> None:
        """End both engines."""
        for engine in self.engines.values():
            engine.close()


def measure(writers: Writers, turns: int, sequences: Sequence[int] = SEQUENCES) -> list[Row]:
    """Measure each number of sequences without and with drafting in turn; every turn writes other texts, both the same ones."""
    found: dict[tuple[int, bool], list[Steps]] = {}
    first = 0
    for _ in range(turns):
        for count in sequences:
            for drafting in (False, True):
                found.setdefault((count, drafting), []).append(writers.write(first, count, drafting))
            first += count
    return [_row(count, drafting, steps) for (count, drafting), steps in found.items()]


def _row(sequences: int, drafting: bool, found: Sequence[Steps]) -> Row:
    steps, seconds = sum(each.steps for each in found), sum(each.seconds for each in found)
    tokens, rows = sum(each.tokens for each in found), sum(each.rows for each in found)
    if not steps:
        raise NotPossibleHere(f"No step had all {sequences} sequences: give --captions with longer reports.")
    return Row(sequences, drafting, tokens / seconds, tokens / steps, rows / steps, 1000 * seconds / steps, steps)


def long_texts(texts: Texts) -> list[list[int]]:
    """Join held-out reports to texts of `LENGTH` tokens, the last of which ends them."""
    stop = texts.held[0][-1]
    joined = [token for text in texts.held for token in text[:-1]]
    size = LENGTH - 1
    return [[*joined[start : start + size], stop] for start in range(0, len(joined) - size, size)]


def _markers(prompts: PromptBuilder, count: int) -> list[int]:
    """Find tokens that are a prompt's whole question, stay one token there, and are in no other prompt."""
    tokenizer, found = prompts.tokenizer, list[int]()
    template = set(prompts.build("", []).token_ids.tolist())
    for token in range(FIRST_MARKER, tokenizer.get_vocab_size()):
        if len(found) == count:
            break
        word = tokenizer.decode([token])
        if token in template or not (word.isascii() and word.isalpha()):
            continue
        if tokenizer.encode(word, add_special_tokens=False).ids == [token]:
            found.append(token)
    return found


def made_bundle(path: Path, layers: int, console: Console) -> Bundle:
    """Return a bundle of random weights of the published width, made where it is missing."""
    if not (path / MANIFEST).is_file():
        config = published_config(layers, vision_depth=1)
        random_bundle(BuildOptions(Path("random"), path, "cpu", name="random"), config, None, console)
    return Bundle(path)


def print_rows(rows: Sequence[Row], title: str, note: str, console: Console) -> None:
    """Print a line for each measurement, with the ratio to that without drafts."""
    headings = ("sequences", "tokens\na step", "rows\na step", "ms\na step", "tokens/s", "ratio")
    table = new_table(title, words("drafting"), *map(figures, headings))
    without = {row.sequences: row.tokens_per_second for row in rows if not row.drafting}
    for row in rows:
        values = (row.tokens_per_step, row.rows_per_step, row.milliseconds_per_step, row.tokens_per_second)
        ratio = row.tokens_per_second / without[row.sequences]
        drafting = "on" if row.drafting else "off"
        table.add_row(drafting, str(row.sequences), *(f"{value:,.2f}" for value in values), f"{ratio:.2f}x")
    print_table(console, table)
    if note:
        console.print(note)


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Measure decoding with and without drafts from phrases.")
    add = parser.add_argument
    add_captions(parser)
    add("--layers", type=int, default=28, help="of the decoder (default 28: all)")
    add("--turns", type=int, default=4, help="how often everything is measured (default 4)")
    add("--threads", type=int, help="of the decoder (default: usable processors)")
    add_kernels(parser)
    add(
        "--folder",
        type=Path,
        default=Path("build"),
        help="where the bundle of random weights is or will be (default build)",
    )
    add("--json", type=Path, default=Path("build/drafting.json"))
    options = parser.parse_args()
    use_kernels(options.kernels)
    console = Console()
    texts = drafting_texts(options.captions)
    bundle = made_bundle(options.folder / f"drafting-{options.layers}", options.layers, Console(stderr=True))
    table = PhraseTable.build(texts.store, SHARED_BY, texts.studies)
    writers = Writers(bundle, long_texts(texts), table, options.threads)
    writers.write(0, 1, drafting=True)  # maps the weights
    rows = measure(writers, options.turns)
    writers.close()
    machine = asdict(this_machine())
    title = f"{options.layers} layers, {machine['cpu']} ({machine['kernels']}); {len(texts.store):,} reports of {texts.name}"
    print_rows(rows, title, texts.note, console)
    report: dict[str, Any] = {
        "machine": machine,
        "layers": options.layers,
        "texts": texts.name,
        "reports": len(texts.store),
        "note": texts.note,
        "rows": [asdict(row) for row in rows],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
