"""Turn measurements into medians, ratios to ours and a Markdown table, and check that all peers did the same work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.peer import Task

BEGIN, END = "<!-- peers -->", "<!-- /peers -->"
TIMES = ("vision_seconds", "first_token_seconds")
WORDS = {"vision_seconds": "vision", "first_token_seconds": "first token"}

Turn = Mapping[str, Mapping[str, Any]]  # what each peer's process wrote, by its name


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        machine: described, with its limits in this run.
        layers: of the decoder.
        turns: each one's results by peer, ours first.
        parity: of each peer's logits.
        faults: where a peer did other work than was asked.
        missing: peers that took no part, and why.
    """

    machine: Mapping[str, Any]
    layers: int
    turns: Sequence[Turn]
    parity: Mapping[str, Mapping[str, float]]
    faults: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def faults(task: Task, turns: Sequence[Turn]) -> list[str]:
    """List the token counts that differ from the task's, each once."""
    found = dict[str, None]()
    for turn in turns:
        for name, result in turn.items():
            for question in task.questions:
                answer = result["answers"][question.name]
                for what, expected in (
                    ("visual_tokens", question.visual_tokens),
                    ("prompt_tokens", len(question.token_ids)),
                ):
                    if answer[what] != expected:
                        words = what.replace("_", " ")
                        found[f"{name} reports {answer[what]} {words} in {question.name}, not {expected}"] = None
    return list(found)


def measured(report: Report) -> dict[str, dict[str, float]]:
    """Return the medians of every peer: seconds by question, tokens a second, GB."""
    found = {}
    for name in report.turns[0]:
        results = [turn[name] for turn in report.turns]
        questions = list(results[0]["answers"])
        figures = {
            f"{time} {question}": median(result["answers"][question][time] for result in results)
            for question in questions
            for time in TIMES
        }
        first = [result["answers"][questions[0]] for result in results]
        figures["decode_tokens_per_second"] = median(_rate(answer) for answer in first)
        figures |= {
            key: median(result[key] for result in results)
            for key in ("load_seconds", "peak_rss_gb", "anonymous_rss_gb")
        }
        found[name] = figures
    return found


def _rate(answer: Mapping[str, Any]) -> float:
    return (answer["written_tokens"] - 1) / answer["decode_seconds"]


def markdown(report: Report) -> str:
    """Render the run as Markdown: the machine, medians with ratios to ours (above 1 is behind ours), and versions."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    machine, found = report.machine, measured(report)
    ours = next(iter(found.values()))
    yield (
        f"{report.layers} decoder layers; {machine['cpu']}, {machine['threads']} threads: reads {machine['read_gbps']:.1f} GB/s, "
        f"int8 peak {machine['int8_gops']:,.0f} GOP/s. Medians of {len(report.turns)} turns; in brackets how far behind ours, "
        "below 1 ahead of ours."
    )
    yield ""
    times = [key for key in ours if key.partition(" ")[0] in TIMES]
    heads = [f"{WORDS[key.partition(' ')[0]]}, {key.partition(' ')[2]}, s" for key in times]
    yield from _row("", *heads, "decode, tokens/s", "load, s", "memory, GB", "of it not mapped files")
    yield from _row("---", *["---:"] * (len(heads) + 4))
    for name, figures in found.items():
        yield from _row(
            name,
            *(_ratio(figures[key], figures[key] / ours[key], 2) for key in times),
            _ratio(
                figures["decode_tokens_per_second"],
                ours["decode_tokens_per_second"] / figures["decode_tokens_per_second"],
                1,
            ),
            *(f"{figures[key]:.2f}" for key in ("load_seconds", "peak_rss_gb", "anonymous_rss_gb")),
        )
    yield ""
    yield from _row("logits against float32", "KL divergence, nats", "likeliest token agrees", "relative error")
    yield from _row("---", "---:", "---:", "---:")
    for name, parity in report.parity.items():
        yield from _row(
            name,
            f"{parity['kl_divergence']:.5f} ± {parity['kl_standard_error']:.5f}",
            f"{parity['top1_agreement']:.0%}",
            f"{parity['relative_error']:.3f}",
        )
    yield ""
    for name, result in report.turns[0].items():
        yield f"- {name}: {', '.join(f'{part} {version}' for part, version in result['versions'].items())}"
    yield from (f"- {name} took no part: {reason}" for name, reason in report.missing.items())
    yield from (f"- Not the same work: {fault}." for fault in report.faults)


def _row(*cells: str) -> Iterator[str]:
    yield f"| {' | '.join(cells)} |"


def _ratio(value: float, behind: float, digits: int) -> str:
    return f"{value:.{digits}f}" + ("" if behind == 1 else f" ({behind:.2f}x)")


def on_page(page: Path, report: Report) -> None:
    """Replace what stands between the page's markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{markdown(report)}{END}{after}", encoding="utf-8")
