"""Run `echovlm-report --studies` and `--end-study`: list and end a client's own open studies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table

from echovlm_edge.runtime.client.report import OpenStudy, open_studies_of
from echovlm_edge.runtime.client.wire.connection import Connection


def run(client: Connection, ended: Sequence[str], listed: bool, in_json: bool, timeout: float | None) -> int:
    """End studies by their ids, then list those that are left; returns the command's exit code.

    Raises:
        NotFound: a study is not there, or not this client's; those before it were ended.
    """
    for study in ended:
        client.end_study(study, timeout)
    if not listed:
        return 0
    answer = client.list_studies(timeout)
    studies = open_studies_of(answer)
    if in_json:
        print(json.dumps({"studies": [asdict(study) for study in studies], "max_studies": answer.max_studies}))
    else:
        _print(studies, answer.max_studies)
    return 0


def _print(studies: Sequence[OpenStudy], most: int) -> None:
    console = Console()
    if studies:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # narrow, so that no id is cut
        table.add_column("id", no_wrap=True)
        for name in ("begun", "unused for", "images", "MB"):
            table.add_column(name, justify="right")
        for study in studies:
            unused = "in use" if study.in_use else _minutes(study.unused_seconds)
            table.add_row(
                study.id, f"{_minutes(study.age_seconds)} ago", unused, str(study.images), f"{study.bytes / 1e6:.1f}"
            )
        console.print(table)
    console.print(f"{len(studies)} of {most} studies are open.", highlight=False)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
