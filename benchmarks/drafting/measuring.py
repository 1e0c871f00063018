"""Measure a decoder of the published width that writes given texts, with drafts and without."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from benchmarks.drafting.forced_text import ForcedText, Steps, full_steps
from benchmarks.drafting.texts import Texts
from benchmarks.make_checkpoint import published_config
from benchmarks.random_bundle import random_bundle
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, Sampling
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
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
