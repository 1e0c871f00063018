"""Sixteen carts send studies to a DICOM node at once for minutes, and every report is checked (`make soak-dicom`).

Each study must have exactly one document at the PACS, whose text is the one that the server gives for the same pictures; no instance
may be refused, the node's memory, descriptors and threads may not grow, and its log may hold nothing of a patient.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import psutil
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, generate_uid
from pynetdicom import AE, evt
from rich.console import Console

from benchmarks.served import Served, receiving, serving
from demo.dicom_writer import dicom_bytes
from demo.simulate import simulate
from echovlm_edge.runtime.client.report_client import ReportClient
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import ServerUnavailable
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, words
from echovlm_edge.runtime.dicom_node.peer_address import PeerAddress
from echovlm_edge.runtime.dicom_node.sending import send

CARTS, QUIET_SECONDS, TOKENS = 16, 3, 64
SEEDS = range(27, 35)  # of the simulated pictures that studies are made of
PATIENT = "SOAK-SECRET"
SETTLE_SECONDS = 300.0  # until the last reports have come
WARM_UP_SHARE = 0.3  # of the time, after which memory is measured
MAX_RSS_GROWTH, MAX_MORE = 0.10, 8  # of memory; of descriptors and threads


@dataclass
class Sent:
    """What the carts sent: the pictures of each study by its UID, seconds for each association, and how many ended too early."""

    studies: dict[str, tuple[int, ...]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    ended: int = 0


class Pacs:
    """A storage SCP that keeps each study's documents by their UIDs."""

    def __init__(self) -> None:
        """Listen on a free port of loopback."""
        self.documents: dict[str, dict[str, Dataset]] = {}
        entity = AE("PACS")
        entity.add_supported_context(BasicTextSRStorage)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        assert server
        self.port = int(server.server_address[1])

    def _store(self, event: evt.Event) -> int:
        document = event.dataset
        self.documents.setdefault(str(document.StudyInstanceUID), {})[str(document.SOPInstanceUID)] = document
        return 0x0000


def cart(number: int, address: str, folder: Path, until: float, sent: Sent) -> None:
    """Send study after study, as one cart does."""
    chance, host, port = random.Random(number), *address.split(":")
    while time.monotonic() < until:
        study, pictures = str(generate_uid()), tuple(chance.sample(SEEDS, chance.randint(1, 3)))
        files = [written(folder, study, seed, number) for seed in pictures]
        sent.studies[study] = pictures
        begun = time.perf_counter()
        while True:
            try:
                sent.refused += len(send(files, PeerAddress("ECHOVLM", host, int(port)), f"CART{number}"))
                break
            except ServerUnavailable:  # a disk that takes minutes to write, for example: carts send again
                sent.ended += 1
        sent.seconds.append(time.perf_counter() - begun)
        for file in files:
            file.unlink()
        time.sleep(chance.uniform(1.0, 5.0))


def written(folder: Path, study: str, seed: int, number: int) -> Path:
    """Write a simulated picture as an instance of a study."""
    simulated = simulate(seed)
    instance = pydicom.dcmread(io.BytesIO(dicom_bytes(simulated.image, simulated.truth, seed)))
    instance.StudyInstanceUID, instance.PatientID = study, f"{PATIENT}-{number}"
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    instance.BodyPartExamined = ""
    path = folder / f"{instance.SOPInstanceUID}.dcm"
    instance.save_as(path, enforce_file_format=True)
    return path


def expected(server: str, folder: Path, studies: set[tuple[int, ...]]) -> dict[tuple[int, ...], str]:
    """Ask the server itself about the same pictures."""
    texts = {}
    with ReportClient(server) as client:
        for pictures in studies:
            study = str(generate_uid())
            files = [written(folder, study, seed, 0) for seed in pictures]
            texts[pictures] = client.report(files, sampling=Sampling(max_new_tokens=TOKENS)).text
    return texts


def texts_of(document: Dataset) -> list[str]:
    """Return an SR's findings and impression."""
    sections = [section for section in document.ContentSequence if section.ValueType == "CONTAINER"]
    return [item.TextValue for section in sections for item in section.ContentSequence if item.ValueType == "TEXT"]


def measured(node: Served) -> tuple[int, int, int]:
    """Return a node's resident bytes, descriptors and threads."""
    process = psutil.Process(node.pid)
    return process.memory_info().rss, process.num_fds(), process.num_threads()


def soak(minutes: float, bundle: Path, console: Console) -> int:
    """Run the soak; returns the exit code."""
    pacs, sent = Pacs(), Sent()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("server", "node", "carts"):
            (folder / part).mkdir()
        options = ("--destination", f"PACS@127.0.0.1:{pacs.port}", "--quiet-seconds", QUIET_SECONDS)
        limits = ("--max-new-tokens", TOKENS, "--log", "json", "--keep-hours", 0, "--near-duplicate-bits", -1)
        with (
            serving(bundle, folder / "server") as server,
            receiving(folder / "spool", folder / "node", server.address, *options, *limits) as node,
        ):
            until = time.monotonic() + 60 * minutes
            arguments = [(number, node.address, folder / "carts", until, sent) for number in range(1, CARTS + 1)]
            carts = [threading.Thread(target=cart, args=each) for each in arguments]
            for each in carts:
                each.start()
            time.sleep(60 * minutes * WARM_UP_SHARE)
            before = measured(node)
            for each in carts:
                each.join()
            last = time.monotonic() + SETTLE_SECONDS
            while len(pacs.documents) < len(sent.studies) and time.monotonic() < last:
                time.sleep(0.5)
            time.sleep(2 * QUIET_SECONDS)
            after = measured(node)
            texts = expected(server.address, folder / "carts", set(sent.studies.values()))
        log = (folder / "node" / "node.log").read_text(encoding="utf-8")
    counts = Counter(len(pacs.documents.get(study, {})) for study in sent.studies)
    wrong = sum(
        not all(part in texts[pictures] for part in texts_of(document))
        for study, pictures in sent.studies.items()
        for document in pacs.documents.get(study, {}).values()
    )
    growth = after[0] / before[0] - 1
    checks = {
        "studies with exactly one report": (f"{counts[1]} of {len(sent.studies)}", counts[1] == len(sent.studies)),
        "reports with another text than the server's": (str(wrong), wrong == 0),
        "instances refused": (str(sent.refused), sent.refused == 0),
        "growth of the node's memory": (f"{growth:+.1%}", growth <= MAX_RSS_GROWTH),
        "more descriptors": (str(after[1] - before[1]), after[1] - before[1] <= MAX_MORE),
        "more threads": (str(after[2] - before[2]), after[2] - before[2] <= MAX_MORE),
        "lines of the log with a patient": (str(log.count(PATIENT)), PATIENT not in log),
        "errors in the log": (str(log.count('"level": "error"')), '"level": "error"' not in log),
    }
    table = new_table("soak of the DICOM node", names("what"), figures("found"), words("verdict"))
    for what, (found, good) in checks.items():
        table.add_row(what, found, "good" if good else "[red]bad[/red]")
    table.add_row("associations that ended too early, and were made again", str(sent.ended), "")
    table.add_row("an association, median and p95, s", " ".join(f"{q:.2f}" for q in _percentiles(sent.seconds)), "")
    print_table(console, table)
    return 0 if all(good for _, good in checks.values()) else 1


def _percentiles(values: list[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=20)
    return cuts[9], cuts[18]


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.soak.dicom", description="Sixteen carts on one DICOM node.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--bundle", type=Path, default=Path("bundles/demo"))
    options = parser.parse_args()
    return run_command(lambda: soak(options.minutes, options.bundle, Console()))


if __name__ == "__main__":
    sys.exit(main())
