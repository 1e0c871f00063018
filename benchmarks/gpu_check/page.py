"""A check's results as tables: a section of Markdown for docs/gpu-results.md, and the same tables in a terminal.

python -m benchmarks.gpu_check.page results.json
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.gpu_check.figures import (
    Bandwidth,
    Decoding,
    DraftedStep,
    EagerFigures,
    PublishedFigures,
    Results,
    read_results,
)
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.stages import words
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table

REHEARSAL = (
    "A rehearsal without a GPU, at small sizes: it shows that every stage runs; none of its times mean anything."
)


@dataclass(frozen=True)
class TableOf:
    """One table: its title, its headings, rows of cells, and sentences below it; the first `named` columns are words."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: tuple[str, ...] = ()
    named: int = 1


def page(results: Results) -> str:
    """Render the section."""
    lines = [f"### {title(results)}", ""]
    if results.rehearsal:
        lines += [f"**{REHEARSAL}**", ""]
    for table in tables(results):
        lines += [f"**{table.title}**", ""]
        rule = ["---" if place < table.named else "---:" for place in range(len(table.head))]
        lines += [f"| {' | '.join(cells)} |" for cells in (table.head, rule, *table.rows)]
        lines += ["", *(f"- {sentence}" for sentence in table.below), *([""] if table.below else [])]
    return "\n".join(lines).rstrip() + "\n"


def print_results(results: Results, console: Console) -> None:
    """Print the tables."""
    if results.rehearsal:
        console.print(REHEARSAL)
    for table in tables(results):
        columns = (names(head) if place < table.named else figures(head) for place, head in enumerate(table.head))
        made = new_table(table.title, *columns)
        for row in table.rows:
            made.add_row(*row)
        print_table(console, made)
        for sentence in table.below:
            console.print(sentence, markup=False, highlight=False)


def title(results: Results) -> str:
    """Name the machine, the day and the commit."""
    machine = results.machine
    gpu = f"{machine.gpu} (SM {machine.sm})" if machine else "an unknown GPU"
    return f"{gpu}, {results.created[:10]}" + (f", commit {results.commit}" if results.commit else "")


def tables(results: Results) -> Iterator[TableOf]:
    """Render every stage that has figures, after how the stages ended."""
    rows = tuple((end.name, end.state, f"{end.seconds:.0f}", end.reason) for end in results.stages)
    yield TableOf("stages", ("stage", "", "s", "reason"), rows, named=4)
    if results.machine:
        yield _machine(results)
    if results.tests:
        yield _tests(results)
    if results.tokens:
        yield _tokens(results)
    if results.reuse:
        yield _reuse(results)
    if results.published:
        yield from _published(results.published, results.eager)
    if results.eager:
        yield _eager(results.eager)


def _machine(results: Results) -> TableOf:
    machine = results.machine
    assert machine is not None
    kernels = "of this install, for it" if machine.kernels else "none for it: DualPathMoE is spelled out"
    found = {
        "GPU": f"{machine.gpu}, SM {machine.sm}, {machine.memory_gb:.0f} GB",
        "driver, CUDA": f"{machine.driver}, {machine.cuda}",
        "power limit": f"{machine.power_limit_watts:.0f} W" if machine.power_limit_watts else "not reported",
        "highest clock": f"{machine.clock_max_mhz} MHz" if machine.clock_max_mhz else "not reported",
        "memory": _bandwidth(machine.bandwidth),
        "kernels": kernels,
        "CPU": f"{machine.cpu}, {machine.cores} processors",
        "packages": ", ".join(f"{name} {version}" for name, version in machine.packages.items()),
    }
    return TableOf("machine", ("", ""), tuple(found.items()), named=2)


def _bandwidth(found: Bandwidth | None) -> str:
    if found is None:
        return "not measured"
    return f"read {found.read_gbps:,.0f} GB/s, copied {found.copy_gbps:,.0f} GB/s (bytes read and written)"


def _tests(results: Results) -> TableOf:
    tests = results.tests
    assert tests is not None
    counts = {
        outcome: sum(test.outcome == outcome for test in tests.tests) for outcome in ("passed", "failed", "skipped")
    }
    failed = [f"failed: {test.name}: {test.reason}" for test in tests.tests if test.outcome == "failed"]
    skipped: dict[str, int] = {}
    for test in tests.tests:
        if test.outcome == "skipped":
            skipped[test.reason] = skipped.get(test.reason, 0) + 1
    below = (*failed, *(f"skipped, {count}: {reason}" for reason, count in skipped.items()), *tests.notes)
    return TableOf("tests/gpu", ("outcome", "tests"), tuple((name, str(n)) for name, n in counts.items() if n), below)


def _tokens(results: Results) -> TableOf:
    assert results.tokens is not None
    rows, below = [], []
    for case in results.tokens.cases:
        verdict = "wrong" if not case.good else "equal" if not case.divergences else "near ties"
        rows.append(
            (
                f"{case.bundle}, {'our kernels' if case.operator else 'spelled out'}",
                str(case.batch),
                str(case.tokens),
                f"{case.largest_error:.1e} of {case.largest_logit:.0f}",
                str(len(case.divergences)),
                verdict,
            )
        )
        below += [
            f"{case.bundle}, batch {case.batch}, {one.sequence}: token {one.step} is {one.written} instead of {one.expected}, whose "
            f"logit is {one.margin:.1e} larger; the bound is {case.bound:.1e}"
            for one in case.divergences
        ]
    head = ("bundle", "batch", "tokens", "largest error", "divergences", "verdict")
    return TableOf("greedy tokens compared with the reference", head, tuple(rows), tuple(below))


def _reuse(results: Results) -> TableOf:
    assert results.reuse is not None
    rows = tuple(
        (
            f"{case.bundle}: {case.what}",
            str(case.prompt_tokens),
            str(case.text_tokens),
            str(case.prefilled_tokens),
            f"{case.cold_first_seconds / case.first_seconds:.1f}x" if case.first_seconds else "",
            "the same" if case.differs_at is None else f"differ at {case.differs_at}",
        )
        for case in results.reuse.cases
    )
    head = ("request", "prompt", "text", "prefilled", "first token sooner than cold", "tokens of a cold engine")
    return TableOf("reuse: tokens of the prompt", head, rows)


def _published(found: PublishedFigures, eager: EagerFigures | None) -> Iterator[TableOf]:
    kind = "our kernels" if found.operator else "DualPathMoE spelled out"
    made = "" if found.made_seconds is None else f", written in {found.made_seconds:.0f} s"
    memory = "" if found.gpu_gb is None else f"; {found.gpu_gb:.1f} GB of the GPU's memory in use"
    same = eager if eager and eager.layers == found.layers else None
    rows = []
    for first in found.first_tokens:
        largest = sorted(first.stages.items(), key=lambda stage: -stage[1])[:3]
        stages = ", ".join(f"{words(name)} {_ms(seconds)}" for name, seconds in largest)
        rows.append(
            (first.workload, str(first.image_tokens), str(first.prompt_tokens), _ms(first.seconds), stages),
        )
    yield TableOf(
        f"published size, {found.layers} layers, {found.precision}, random weights, {kind}: first token, ms",
        ("workload", "image tokens", "prompt", "first token", "largest stages"),
        tuple(rows),
        (f"bundle of {found.bundle_gb:.2f} GB{made}, loaded in {found.load_seconds:.0f} s{memory}",),
    )
    steps = {step.sequences: step.seconds for step in same.steps} if same else {}
    yield TableOf(
        "published size: tokens a second, each step one decoder call",
        ("sequences", "cached each", "ms a step", "tokens/s", "of the read bandwidth", "W", "J a token", "eager"),
        tuple(_decoding_row(row, found.bandwidth, steps.get(row.sequences)) for row in found.decoding),
        (f"memory: {_bandwidth(found.bandwidth)}", "eager: how many times as long PyTorch's step takes, in bfloat16"),
        named=0,
    )
    if found.drafted:
        one = found.drafted[0].seconds
        yield TableOf(
            "published size: a step that verifies a draft, one sequence",
            ("rows", "ms", "of a step without", "pays from this share of right guesses"),
            tuple(_drafted_row(step, one) for step in found.drafted),
            ("a draft pays where more of its tokens are right, on average, than the step takes longer",),
            named=0,
        )
    if found.operators:
        operators = tuple(
            (row.phase, row.clock, row.name, f"{row.calls:.0f}", f"{row.milliseconds:.3f}") for row in found.operators
        )
        yield TableOf(
            "published size: where a decoder call's time goes",
            ("phase", "clock", "operator or kernel", "calls", "ms"),
            operators,
            ("host: the time in which ONNX Runtime launches an operator, not that in which the GPU runs it",),
            named=3,
        )


def _decoding_row(row: Decoding, bandwidth: Bandwidth | None, eager: float | None) -> tuple[str, ...]:
    return (
        str(row.sequences),
        str(row.cached),
        f"{row.step_seconds * 1e3:.2f}",
        f"{row.tokens_per_second:,.1f}",
        f"{row.gbps / bandwidth.read_gbps:.0%}" if bandwidth else "",
        "" if row.watts is None else f"{row.watts:.0f}",
        "" if row.joules_per_token is None else f"{row.joules_per_token:.2f}",
        "" if eager is None else f"{eager / row.step_seconds:.1f}x",
    )


def _drafted_row(step: DraftedStep, one: float) -> tuple[str, ...]:
    longer = step.seconds / one
    share = f"{(longer - 1) / (step.rows - 1):.0%}" if step.rows > 1 else ""
    return str(step.rows), f"{step.seconds * 1e3:.2f}", f"{longer:.2f}x", share


def _eager(found: EagerFigures) -> TableOf:
    rows = [
        ("a frame of W1, vision and projector", _ms(found.vision_seconds)),
        (f"prefill of {found.prefill_tokens} tokens", _ms(found.prefill_seconds)),
        *((f"a step of {step.sequences}", _ms(step.seconds)) for step in found.steps),
    ]
    if found.few_seconds is not None:
        rows.append((f"a step of 1, {found.few_layers} layers", _ms(found.few_seconds)))
    if found.compiled_seconds is not None:
        rows.append((f"the same by torch.compile, {found.few_layers} layers", _ms(found.compiled_seconds)))
    below = (found.compiled_reason,) if found.compiled_reason else ()
    return TableOf(f"PyTorch {found.torch} eager, bfloat16, {found.layers} layers, ms", ("", "ms"), tuple(rows), below)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f}"


def main() -> int:
    """Print the section of a file of results; returns the exit code."""
    if len(sys.argv) != 2:
        print("usage: python -m benchmarks.gpu_check.page results.json", file=sys.stderr)
        return 2
    print(page(read_results(Path(sys.argv[1]))), end="")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
