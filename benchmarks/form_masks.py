"""Measure what a form costs a token on the published vocabulary: python -m benchmarks.form_masks.

Texts of random allowed tokens, which meet more states of a form than a model's texts do. The masks are computed on another thread while
the decoder runs; what the decoder's own thread does is the rest. In processor time, so that other work on the machine counts little.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from benchmarks.qwen_tokenizer import FIRST_SPECIAL_ID, SPECIAL_TOKENS, write_tokenizer
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, SchemaForm, SectionsForm, TextForm
from echovlm_edge.runtime.engine.forms.form_compiler import FormCompiler
from echovlm_edge.runtime.engine.forms.form_state import allowed_tokens

Result = TypeVar("Result")
VOCABULARY, TEXTS, TOKENS = 152_064, 30, 60
FINDING = {
    "type": "object",
    "properties": {
        "finding": {"type": "string", "maxLength": 200},
        "side": {"enum": ["left", "right", "both"]},
        "size_mm": {"type": "number", "minimum": 0, "maximum": 500},
        "notes": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
    },
    "required": ["finding", "side", "size_mm", "notes"],
    "additionalProperties": False,
}
FORMS: dict[str, TextForm] = {
    "True or False": ChoiceForm(("True", "False")),
    "JSON by a schema": SchemaForm(json.dumps(FINDING)),
    "any JSON object": SchemaForm('{"type": "object"}'),
    "regular expression": PatternForm(r"[A-Z][a-z ]{3,60} \d{1,3} mm\."),
    "sections, English": SectionsForm(Language.EN),
    "sections, Chinese": SectionsForm(Language.ZH),
}


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    stops = [FIRST_SPECIAL_ID + SPECIAL_TOKENS.index(token) for token in ("<|im_end|>", "<|endoftext|>")]
    compiler = FormCompiler(tokenizer, VOCABULARY, stops)
    _, loading = _timed(lambda: compiler.compile(PatternForm("a")))
    table = Table(title=f"{VOCABULARY:,} tokens, read in {loading:.1f} s", title_justify="left")
    for name in ("form", "compile ms", "mask ms", "99 %", "most", "rest ms", "99 %"):
        table.add_column(name, justify="left" if name == "form" else "right")
    for name, form in FORMS.items():
        compiled, seconds = _timed(partial(compiler.compile, form))
        masks, rest = list[float](), list[float]()
        for text in range(TEXTS):
            state, random = compiled.begin(), np.random.default_rng(text)
            for _ in range(TOKENS):
                _, waited = _timed(state.allowed)
                tokens = allowed_tokens(state.allowed(), VOCABULARY)
                token = int(tokens[random.integers(len(tokens))])
                _, taken = _timed(partial(state.take, token))
                masks.append(1e3 * waited)
                if state.ended:
                    break
                _, guessed = _timed(state.forced)
                rest.append(1e3 * (taken + guessed))
        mask_figures = [f"{np.mean(masks):.2f}", f"{np.percentile(masks, 99):.2f}", f"{max(masks):.1f}"]
        table.add_row(
            name, f"{1e3 * seconds:.1f}", *mask_figures, f"{np.mean(rest):.3f}", f"{np.percentile(rest, 99):.2f}"
        )
    compiler.close()
    Console().print(table)


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    done = work()
    return done, time.process_time() - started


if __name__ == "__main__":
    main()
