"""Write docs/performance.md from the results of `make bench`, so that no figure is written by hand.

python -m benchmarks.performance build/bench.json [--output docs/performance.md]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.stages import words
from echovlm_edge.runtime.profiling.workloads import NAMED

Found = Mapping[str, Any]
STAGES = ("vision", "projector", "prefill", "decode")


def page(report: Found) -> str:
    """Render the whole document."""
    machine, results = report["machine"], report["benchmarks"]
    lines = [
        "# Performance",
        "",
        "Written by `python -m benchmarks.performance build/bench.json` from the results of `make bench`. Do not edit it by hand.",
        "",
        *_machine(machine, report["created"]),
    ]
    for name, section in (
        ("dual_path_moe", _dual_path_moe),
        ("decoder", _decoder),
        ("stages", _stages),
        ("profile", _profile),
        ("checks", _checks),
    ):
        if name in results:
            lines += ["", *section(results[name]["result"]), "", f"Measured {results[name]['measured']}."]
    return "\n".join(lines) + "\n"


def _machine(machine: Found, created: str) -> Iterator[str]:
    yield f"The machine on {created}:"
    yield ""
    yield from _table(
        ("", ""),
        [(name.replace("_", " "), _value(value)) for name, value in machine.items() if value not in (None, {}, "")],
    )


def _value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return str(value)


def _dual_path_moe(found: Found) -> Iterator[str]:
    machine = found["machine"]
    yield "## One layer's DualPathMoE at the published width"
    yield ""
    yield (
        f"int4, {machine['threads']} threads; in the same run the machine read {machine['read_gbps']:.1f} GB/s and multiplied "
        f"{machine['int8_gops']:,.0f} GOP/s. Milliseconds, and in brackets the ratio to ours. ONNX Runtime is the fastest "
        "combination of its own operators."
    )
    yield ""
    names = {
        "onnxruntime": "ONNX Runtime",
        "torch_fp32": "PyTorch eager, float32",
        "torch_bf16": "PyTorch eager, bfloat16",
    }
    rows = []
    for tokens in sorted({row["tokens"] for row in found["rows"]}):
        by_name = {row["impl"]: row for row in found["rows"] if row["tokens"] == tokens}
        ours = by_name["ours"]
        rows.append(
            (
                str(tokens),
                f"{ours['ms']:,.2f}",
                *(f"{by_name[name]['ms']:,.2f} ({by_name[name]['ms'] / ours['ms']:.2f}x)" for name in names),
                f"{ours['gbps'] / machine['read_gbps']:.0%}",
                f"{ours['gops'] / machine['int8_gops']:.0%}",
            )
        )
    yield from _table(("tokens", "ours", *names.values(), "of the read bandwidth", "of the int8 peak"), rows)


def _decoder(found: Found) -> Iterator[str]:
    machine = found["machine"]
    yield "## Four decoder layers of the published width"
    yield ""
    yield (
        f"int4, {machine['threads']} threads, a vocabulary of 1,024, alternating; llama.cpp (Q4_0) with a model of the same shapes. The "
        f"machine read {machine['read_gbps']:.1f} GB/s and multiplied {machine['int8_gops']:,.0f} GOP/s. Tokens a second."
    )
    yield ""
    rows = []
    for phase in ("decode", "prefill"):
        by_name = {row["impl"]: row for row in found["decoder"] if row["phase"] == phase}
        ours, llama = by_name["ours"], by_name.get("llama.cpp")
        rows.append(
            (
                phase,
                f"{ours['tokens_per_second']:.1f}",
                f"{ours['share_outside_moe']:.0%}",
                f"{llama['tokens_per_second']:.1f}" if llama else "not installed",
            )
        )
    yield from _table(("phase", "ours", "of it outside DualPathMoE", "llama.cpp"), rows)


def _stages(found: Found) -> Iterator[str]:
    reference, *others = found["stages"]
    yield "## Each stage compared with PyTorch eager"
    yield ""
    yield (
        f"A random checkpoint of a medium size, one 640x480 frame, {found['prompt_tokens']} prompt tokens, "
        f"{found['machine']['threads']} threads, alternating. Milliseconds (speed-up)."
    )
    yield ""
    rows = []
    for stage in STAGES:
        base = found["stages"][reference][stage]
        cells = (found["stages"][name][stage] for name in others)
        rows.append(
            (
                f"{stage}, a token" if stage == "decode" else stage,
                f"{base * 1e3:,.1f}",
                *(f"{seconds * 1e3:,.1f} ({base / seconds:.2f}x)" for seconds in cells),
            )
        )
    yield from _table(("stage", reference, *others), rows)


def _profile(found: Found) -> Iterator[str]:
    bundle, conditions = found["bundle"], found["conditions"]
    yield "## Whole reports"
    yield ""
    yield (
        f"`echovlm-profile` on the bundle {bundle['model']} ({bundle['precision']}, {bundle['target']}), {conditions['where']}, "
        f"{conditions['runs']} runs after {conditions['warmups']} warm-ups. Medians, and in brackets the 95th percentile."
    )
    yield ""
    rows = []
    for workload in found["workloads"]:
        largest = max(workload["stages"].items(), key=lambda stage: stage[1]["share"])
        rows.append(
            (
                f"{workload['name']}: {NAMED[workload['name']].words if workload['name'] in NAMED else ''}",
                _ms(workload["ttft"]),
                _ms(workload["tpot"]),
                _ms(workload["end_to_end"]),
                f"{workload['tokens_per_second']:.1f}",
                f"{words(largest[0])}, {largest[1]['share']:.0%}",
                f"{workload['memory'].get('resident', 0) / 1e6:,.0f} MB",
                ", ".join(f"{value:.1f} J" for value in workload["energy"]["joules"].values()) or "unknown",
            )
        )
    head = ("workload", "first token, ms", "a token, ms", "whole, ms", "tokens/s", "largest stage", "memory", "energy")
    yield from _table(head, rows)
    least = min(
        sum(run["stages"].values()) / run["seconds"] for workload in found["workloads"] for run in workload["runs"]
    )
    yield ""
    yield f"The stages account for {least:.1%} or more of every run."


def _ms(distribution: Found | None) -> str:
    return f"{distribution['median'] * 1e3:,.1f} ({distribution['p95'] * 1e3:,.1f})" if distribution else ""


def _checks(found: Sequence[Found]) -> Iterator[str]:
    yield "## The profiler itself"
    yield ""
    yield "Alternating in one run: the change from the first to the second, with its 95 % confidence interval."
    yield ""
    yield from _table(
        ("", "change", "interval", "runs"),
        [
            (
                check["what"],
                f"{check['change']:+.2%}",
                f"{check['low']:+.2%} to {check['high']:+.2%}",
                str(check["runs"]),
            )
            for check in found
        ],
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join(['---'] * len(head))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> int:
    """Write the document; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/performance.md from a run of make bench.")
    parser.add_argument("report", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args()
    options.output.write_text(page(json.loads(options.report.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{options.output} written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
