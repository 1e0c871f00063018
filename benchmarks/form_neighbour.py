"""What slow forms of one client cost another's text: the time between its tokens, alone and beside them.

python -m benchmarks.form_neighbour --bundle bundles/random-2
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, Sampling, Stage
from echovlm_edge.runtime.contracts.text_form import PatternForm, TextForm
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.forms.form_state import FormState
from echovlm_edge.runtime.engine.report_engine import ReportEngine

PLAIN = PatternForm(r"[A-Z][a-z ]{3,600}")
FORMS: dict[
    str, tuple[TextForm | None, float]
] = {  # and seconds that each mask takes longer, as with a form that nobody has thought of yet
    "no other text": (None, 0.0),
    "plain forms": (PLAIN, 0.0),
    "slow forms": (PatternForm(r".*[a-m].{8}"), 0.0),
    "50 ms a mask": (PLAIN, 0.05),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.form_neighbour", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="one with the published vocabulary shows most")
    parser.add_argument("--tokens", type=int, default=400, help="of the text that is measured")
    parser.add_argument("--others", type=int, default=3, help="texts beside it")
    return run_command(lambda: _measure(parser.parse_args(arguments)))


def _measure(options: argparse.Namespace) -> int:
    engine = ReportEngine.open(options.bundle, options=EngineOptions(ignore_stop=True))
    _write(engine, PatternForm("a"), 8, "warm")  # reads the vocabulary
    table = Table(title=f"a text of {options.tokens} tokens beside {options.others} others", title_justify="left")
    for name in ("others have", "median ms", "99 %", "most"):
        table.add_column(name, justify="left" if name == "others have" else "right")
    compute = FormState._compute
    for name, (form, longer) in FORMS.items():

        def compute_longer(state: FormState, draft: Sequence[int], longer: float = longer) -> NDArray[np.uint32]:
            time.sleep(longer)
            return compute(state, draft)

        FormState._compute = compute_longer  # type: ignore[method-assign, assignment]
        ended = threading.Event()
        others = [
            threading.Thread(target=_repeat, args=(engine, form, f"other {number}", ended))
            for number in range(options.others if form else 0)
        ]
        for other in others:
            other.start()
        gaps = 1e3 * _write(engine, None, options.tokens, "one")
        ended.set()
        for other in others:
            other.join()
        table.add_row(name, f"{np.median(gaps):.1f}", f"{np.percentile(gaps, 99):.1f}", f"{gaps.max():.1f}")
    engine.close()
    Console().print(table)
    return 0


def _repeat(engine: ReportEngine, form: TextForm | None, client: str, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            _write(engine, form, 300, client, ended)
        except UnusableForm:  # too slow or too complex: the next one
            continue


def _write(
    engine: ReportEngine, form: TextForm | None, tokens: int, client: str, ended: threading.Event | None = None
) -> NDArray[np.float64]:
    """Write a text; returns the seconds between the starts of its steps."""
    sampling = Sampling(tokens, temperature=1.0 if form else 0.0, seed=len(client))
    request = GenerationRequest("Write anything.", sampling=sampling, form=form, client=client)
    *_, last = engine.generate(request, ended.is_set if ended else lambda: False)
    assert isinstance(last, Finished)
    starts = sorted({span.start for span in last.spans if span.stage is Stage.DECODE})
    return np.diff(starts) if len(starts) > 1 else np.zeros(1)


if __name__ == "__main__":
    sys.exit(main())
