"""`echovlm-dicom status`, `complete` and `resend`: look at a spool, which a node may be using, and give an operator's word."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console

from echovlm_edge.runtime.contracts.command import SEVERAL, add_version
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, readable_bytes, words
from echovlm_edge.runtime.dicom_node.spool.rows import Summary, study_of
from echovlm_edge.runtime.dicom_node.spool.spool import Spool
from echovlm_edge.runtime.dicom_node.spool.states import StudyState

ABOUT = {
    "complete": "Take studies to be complete now: their reports are asked for.",
    "resend": "Send the last report of studies again to all destinations, the very same objects; of a study of which no report "
    "could be written, try again.",
}


def status_parser() -> argparse.ArgumentParser:
    """Make the parser of `status`."""
    parser = argparse.ArgumentParser(
        prog="echovlm-dicom status", description="List the studies in a spool and their states."
    )
    add_version(parser)
    _add_spool(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the studies' UIDs")
    return parser


def complete_parser() -> argparse.ArgumentParser:
    """Make the parser of `complete`."""
    return _named(argparse.ArgumentParser(prog="echovlm-dicom complete", description=ABOUT["complete"]))


def resend_parser() -> argparse.ArgumentParser:
    """Make the parser of `resend`."""
    return _named(argparse.ArgumentParser(prog="echovlm-dicom resend", description=ABOUT["resend"]))


def summaries(spool: Spool) -> list[Summary]:
    """Summarise all studies of a spool, the oldest first."""
    counts = {
        row["study"]: row
        for row in spool.database.rows(
            "SELECT study, count(*) AS instances, sum(bytes) AS bytes FROM instances GROUP BY study"
        )
    }
    sent = {
        row["study"]: row
        for row in spool.database.rows(
            "SELECT study, sum(state = 'owed') AS owed, sum(state = 'delivered') AS delivered,"
            " max(CASE WHEN state = 'owed' THEN error ELSE '' END) AS error"
            " FROM deliveries JOIN documents ON documents.id = document GROUP BY study"
        )
    }
    listed = []
    for row in spool.database.rows("SELECT * FROM studies ORDER BY id"):
        here, there = counts.get(row["id"]), sent.get(row["id"])
        listed.append(
            Summary(
                study_of(row),
                here["instances"] if here else 0,
                here["bytes"] if here else 0,
                there["owed"] if there else 0,
                there["delivered"] if there else 0,
                there["error"] if there else "",
            )
        )
    return listed


def run_status(options: argparse.Namespace) -> int:
    """List the studies; returns the exit code."""
    spool = _opened(options.spool)
    found = summaries(spool)
    spool.close()
    if options.json:
        print(json.dumps({"studies": [_as_json(one) for one in found]}))
        return 0
    table = new_table(
        "",
        *(figures("study"), words("state"), figures("version"), names("from")),
        *(figures("images"), figures("size"), figures("sent"), figures("owed"), figures("age"), names("why")),
    )
    for one in found:
        study = one.study
        why = study.reason or one.error
        table.add_row(
            *(str(study.id), study.state.value, str(study.version), study.ae_title, str(one.instances)),
            *(readable_bytes(one.bytes), str(one.delivered), str(one.owed), _age(time.time() - study.begun), why),
        )
    if found:
        print_table(Console(), table)
    owed = sum(one.owed for one in found)
    print(f"{len(found)} {'study' if len(found) == 1 else 'studies'}, {owed} documents owed.")
    return 0


def run_on_studies(word: str, options: argparse.Namespace) -> int:
    """Complete or resend studies; returns the exit code.

    Raises:
        InvalidInput: there is no such study, or its state does not allow it.
    """
    spool = _opened(options.spool)
    try:
        for name in options.studies:
            study = spool.studies.find(name)
            if word == "complete":
                done = spool.studies.complete(study, "an operator's word")
                need = "it is not receiving"
            elif study.state is StudyState.FAILED:
                done, need = spool.studies.try_again(study), "its state has just changed"
            else:
                done, need = spool.deliveries.resend(study) > 0, "it has no delivered report in the spool"
            if not done:
                raise InvalidInput(f"Study {name} is {study.state.value}: {need}.")
            print(f"Study {study.id}: {'complete' if word == 'complete' else 'will be sent again'}.")
    finally:
        spool.close()
    return 0


def _opened(folder: Path) -> Spool:
    if not (folder / "spool.db").is_file():
        raise NotPossibleHere(f"{folder} is no spool: give the folder of the node's --spool.")
    return Spool(folder)


def _named(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    add_version(parser)
    _add_spool(parser)
    parser.add_argument("studies", metavar="STUDY", help="its number in `status`, or its StudyInstanceUID", **SEVERAL)
    return parser


def _add_spool(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spool", type=Path, required=True, metavar="DIR", help="the node's spool")


def _as_json(one: Summary) -> dict[str, object]:
    study = one.study
    return {
        "study": study.id,
        "uid": study.uid,
        "state": study.state.value,
        "version": study.version,
        "ae_title": study.ae_title,
        "completed_by": study.completed_by,
        "reason": study.reason,
        "begun": study.begun,
        "changed": study.changed,
        "instances": one.instances,
        "bytes": one.bytes,
        "delivered": one.delivered,
        "owed": one.owed,
        "error": one.error,
    }


def _age(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
