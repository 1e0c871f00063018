"""Load a server with many clients for minutes, with cancels, deadlines and dropped connections, and check it (`make soak`).

Every finished text must equal the one that a single client gets; no slot, place or memory may leak; a full queue must refuse
immediately; batched decoding must be faster than single calls; a prefilled study must answer as fast as a short text prompt. Five of
the sixteen clients speak HTTP, with the same checks; two are hostile, and must not change any of that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families
from pydicom.data import get_testdata_file
from rich.console import Console
from rich.table import Table

from benchmarks.hostile import DEAF, HALF_OPEN, held_connections
from benchmarks.hostile import started as hostile_client
from benchmarks.served import free_port, serving
from benchmarks.soak_http import Form, HttpClient
from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.tables import names, new_table, print_table, words

CLIENTS, HOSTILE, OVER_HTTP, SLOTS, QUEUE = 16, 2, 5, 8, 4  # two of the sixteen are hostile, five speak HTTP
TOKENS = {"cart": "the-cart's-token", "hostile": "a-stolen-token"}
CINE, FRAMES = "examples_ybr_color.dcm", 30
WARM_UP_SHARE = 0.3  # fraction of the time after which memory is measured
BATCHING_ROUNDS, STUDY_ROUNDS = 7, 30
# The bounds that must hold.
MAX_RSS_GROWTH, MAX_REFUSAL_P99, MIN_BATCH_GAIN, MAX_STUDY_RATIO = 0.05, 0.050, 2.5, 1.2
MAX_BESIDE_RATIO, MAX_BESIDE_SECONDS, BESIDE_ROUNDS = 1.2, 0.100, 8


@dataclass
class Soak:
    """The contents of `soak.json`; seconds and shares."""

    machine: str
    bundle: str
    minutes: float
    calls: dict[str, int] = field(default_factory=dict)
    wrong_texts: int = 0
    rss_growth: float = 0.0
    leaked_slots: float = 0.0
    refusal_p99: float = 0.0
    tokens_per_second_alone: float = 0.0
    tokens_per_second_of_8: float = 0.0
    study_first_token: float = 0.0
    text_first_token: float = 0.0
    study_equals_one_call: bool = False
    report_alone: float = 0.0
    report_beside_hostile: float = 0.0
    health_alone: float = 0.0
    health_beside_hostile: float = 0.0

    def checks(self) -> dict[str, tuple[str, bool]]:
        """List the checks: name, figure, and whether it holds."""
        gain = self.tokens_per_second_of_8 / max(self.tokens_per_second_alone, 1e-9)
        ratio = self.study_first_token / max(self.text_first_token, 1e-9)
        slower = self.report_beside_hostile / max(self.report_alone, 1e-9)
        later = self.health_beside_hostile - self.health_alone
        return {
            "texts that differ from the single client's": (str(self.wrong_texts), self.wrong_texts == 0),
            "leaked slots": (f"{self.leaked_slots:g}", self.leaked_slots == 0),
            "memory after warm-up": (f"{self.rss_growth:+.1%}", self.rss_growth <= MAX_RSS_GROWTH),
            "refusal of a full queue, p99": (f"{self.refusal_p99 * 1e3:.1f} ms", self.refusal_p99 <= MAX_REFUSAL_P99),
            "batched decode of 8 over one": (f"{gain:.2f}x", gain >= MIN_BATCH_GAIN),
            "first token of a study, relative to a text prompt": (f"{ratio:.2f}x", ratio <= MAX_STUDY_RATIO),
            "a study's text equals that of one call": (str(self.study_equals_one_call), self.study_equals_one_call),
            f"a report with {HALF_OPEN} half-open and {DEAF} unread connections": (
                f"{slower:.2f}x",
                slower <= MAX_BESIDE_RATIO and self.report_beside_hostile - self.report_alone <= MAX_BESIDE_SECONDS,
            ),
            "a health check with these connections": (f"{later * 1e3:+.1f} ms", later <= MAX_BESIDE_SECONDS),
        }


@dataclass(frozen=True)
class Soaked:
    """The server under test: its process, its address, and the URLs of its HTTP door and its metrics."""

    pid: int
    address: str
    http: str
    metrics: str

    def rss(self) -> int:
        """Return the memory of the server and its decoding processes in bytes; without the short-lived processes of single files."""
        server, taken = psutil.Process(self.pid), 0
        for process in (server, *server.children()):
            with suppress(psutil.NoSuchProcess):
                taken += process.memory_info().rss
        return taken

    def metric(self, name: str) -> float:
        """Read a metric without labels."""
        with urllib.request.urlopen(self.metrics, timeout=30) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return next(sample.value for family in families for sample in family.samples if sample.name == name)


@contextmanager
def soaked(bundle: Path, folder: Path, *options: str) -> Iterator[Soaked]:
    """Start a server with two clients and few places for calls."""
    clients, metrics, http = folder / "clients.toml", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    tables = [f'[{name}]\ntoken_sha256 = "{sha256(token.encode()).hexdigest()}"\n' for name, token in TOKENS.items()]
    clients.write_text("".join(tables) + "max_calls = 4\n")  # the hostile client's
    limits = (
        "--slots",
        SLOTS,
        "--queue",
        QUEUE,
        "--clients",
        clients,
        "--metrics",
        metrics,
        "--http",
        http,
        "--log",
        "json",
        "--grace",
        5,
    )
    with serving(bundle, folder, *limits, *options) as served:
        yield Soaked(served.pid, served.address, f"http://{http}", f"http://{metrics}/metrics")


class _WithToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Adds the token to every call."""

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._known(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._known(details), request)

    def _known(self, details: Any) -> Any:
        return details._replace(metadata=(("authorization", f"Bearer {TOKENS['cart']}"),))


@contextmanager
def connected(address: str) -> Iterator[report_pb2_grpc.ReportServiceStub]:
    """Open a separate connection for the known cart."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield report_pb2_grpc.ReportServiceStub(grpc.intercept_channel(channel, _WithToken()))


def cine() -> bytes:
    """Read a real cine's file."""
    path = get_testdata_file(CINE, download=False)
    assert isinstance(path, str)
    return Path(path).read_bytes()


def image(*frames: int) -> pb.Image:
    """Read frames of it."""
    return pb.Image(data=cine(), frames=pb.FrameSelection(indices=pb.FrameIndices(index=frames)))


@dataclass(frozen=True)
class Ask:
    """One call: the method and its message."""

    method: str
    message: pb.GenerateReportRequest | pb.DiagnoseRequest | pb.AnswerQuestionRequest

    def start(self, stub: report_pb2_grpc.ReportServiceStub, timeout: float | None = None) -> Any:
        """Start it."""
        return getattr(stub, self.method)(self.message, timeout=timeout)

    def result(self, stub: report_pb2_grpc.ReportServiceStub) -> pb.Result:
        """Return its last message."""
        *_, last = self.start(stub)
        return last.result


def mixed(tokens: int) -> list[Ask]:
    """Make random calls: mixed tasks, languages and numbers of images."""
    asks = []
    for index in range(18):
        language = pb.LANGUAGE_ZH if index % 2 else pb.LANGUAGE_EN
        options = pb.GenerationOptions(language=language, sampling=pb.Sampling(max_new_tokens=tokens + 4 * (index % 5)))
        pictures = [image(5 * index % FRAMES)] if index % 3 else [image(index % FRAMES, (index + 9) % FRAMES)]
        match index % 3:
            case 0:
                asks.append(Ask("GenerateReport", pb.GenerateReportRequest(images=pictures, options=options)))
            case 1:
                asks.append(Ask("Diagnose", pb.DiagnoseRequest(images=pictures, options=options)))
            case _:
                text = f"Is the margin of region {index} smooth?"
                message = pb.AnswerQuestionRequest(question=text, images=pictures[: index % 2], options=options)
                asks.append(Ask("AnswerQuestion", message))
    return asks


def by_both_doors(tokens: int) -> tuple[list[Form], list[Ask]]:
    """Make reports' forms, and the calls of gRPC that have their texts."""
    forms, asks, file = list[Form](), list[Ask](), cine()
    for index in range(8):
        language, known = ("zh", pb.LANGUAGE_ZH) if index % 2 else ("en", pb.LANGUAGE_EN)
        length, frames = tokens + 4 * index, 1 + index % 3
        pictures = [pb.Image(data=file, frames=pb.FrameSelection(evenly_spaced=frames))]
        options = pb.GenerationOptions(language=known, sampling=pb.Sampling(max_new_tokens=length))
        fields = {"language": language, "frames": str(frames), "max_completion_tokens": str(length)}
        if index < 4:
            forms.append(Form(fields | {"task": "report"}, file))
            asks.append(Ask("GenerateReport", pb.GenerateReportRequest(images=pictures, options=options)))
        else:
            forms.append(Form(fields | {"task": "impression"}, file))
            asks.append(Ask("Diagnose", pb.DiagnoseRequest(images=pictures, options=options)))
    return forms, asks


class Client(threading.Thread):
    """Calls repeatedly, and misbehaves now and then."""

    def __init__(self, address: str, asks: Sequence[Ask], texts: Sequence[str], until: float, seed: int) -> None:
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        self.refusals: list[float] = []  # seconds until a call that found no place was refused
        self._address, self._asks, self._texts, self._until = address, asks, texts, until
        self._random = random.Random(seed)

    def run(self) -> None:
        """Run until the time is over."""
        while time.monotonic() < self._until:
            with connected(self._address) as stub:
                for _ in range(self._random.randint(1, 8)):
                    if not self._call(stub):
                        break  # the connection is dropped while calls run on it

    def _call(self, stub: report_pb2_grpc.ReportServiceStub) -> bool:
        which = self._random.randrange(len(self._asks))
        manner = self._random.choices(("whole", "cancel", "deadline", "drop"), (80, 8, 8, 4))[0]
        timeout = self._random.uniform(0.01, 0.5) if manner == "deadline" else None
        started = time.perf_counter()
        call = self._asks[which].start(stub, timeout)
        try:
            leave_after = self._random.randint(1, 12) if manner in ("cancel", "drop") else None
            last = None
            for count, last in enumerate(call, 1):  # noqa: B007
                if count == leave_after:
                    if manner == "cancel":
                        call.cancel()
                    self.outcomes[manner] += 1
                    return manner == "cancel"
            right = last is not None and last.result.text == self._texts[which]
            self.outcomes["right" if right else "wrong"] += 1
        except grpc.RpcError as error:
            self.outcomes[error.code().name.lower()] += 1
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.refusals.append(time.perf_counter() - started)
                metadata: Any = error.trailing_metadata()
                trailing = {key: str(value) for key, value in metadata or ()}
                pause = trailing.get("grpc-retry-pushback-ms", "100")
                time.sleep(min(int(pause) / 1000, 2.0))
        return True


def soak(served: Soaked, found: Soak, console: Console) -> None:
    """Run the clients, and check what is left after them."""
    asks, (forms, same) = mixed(48), by_both_doors(48)
    with connected(served.address) as stub:
        texts, of_forms = ([ask.result(stub).text for ask in each] for each in (asks, same))
    started = time.monotonic()
    until = started + 60 * found.minutes
    token, others = TOKENS["cart"], CLIENTS - HOSTILE - OVER_HTTP
    clients: list[Client | HttpClient] = [Client(served.address, asks, texts, until, seed) for seed in range(others)]
    clients += [HttpClient(served.http, token, forms, of_forms, until, seed) for seed in range(OVER_HTTP)]
    hostile = [hostile_client(served.address, TOKENS["hostile"], until - started, seed) for seed in range(HOSTILE)]
    for client in clients:
        client.start()
    memory: list[tuple[float, int]] = []
    with console.status("soaking"):
        while time.monotonic() < until:
            time.sleep(min(1.0, 6 * found.minutes))
            memory.append(((time.monotonic() - started) / (until - started), served.rss()))
    for client in clients:
        client.join()
    for process in hostile:
        process.wait()
    outcomes: Counter[str] = sum((client.outcomes for client in clients), Counter())
    found.calls, found.wrong_texts = dict(outcomes), outcomes["wrong"]
    refusals = [seconds for client in clients for seconds in client.refusals]
    found.refusal_p99 = float(np.percentile(refusals, 99)) if refusals else 0.0
    warm = [rss for share, rss in memory if WARM_UP_SHARE <= share < WARM_UP_SHARE + 0.2]
    end = [rss for share, rss in memory if share >= 0.8]
    found.rss_growth = median(end) / median(warm) - 1
    time.sleep(1)
    found.leaked_slots = served.metric("echovlm_slots_busy") + served.metric("echovlm_waiting")


def batching(served: Soaked, found: Soak) -> None:
    """Measure tokens a second of one call and of eight at once, alternately, without drafts; prompts are short beside their texts."""
    alone, together = zip(*((_rate(served, 1), _rate(served, 8)) for _ in range(BATCHING_ROUNDS)), strict=True)
    found.tokens_per_second_alone, found.tokens_per_second_of_8 = median(alone), median(together)


def _rate(served: Soaked, together: int) -> float:
    options = pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=400))
    texts = [f"Describe everything, and begin with {index}." for index in range(together)]
    tokens: list[int] = []

    def ask(text: str) -> None:
        with connected(served.address) as stub:
            message = pb.AnswerQuestionRequest(question=text, options=options)
            tokens.append(Ask("AnswerQuestion", message).result(stub).usage.generated_tokens)

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(tokens) / (time.perf_counter() - started)


def studies(served: Soaked, found: Soak) -> None:
    """Compare a report on a study of seven prefilled frames (W7) with a text-only prompt.

    The text-only prompt has as many tokens left to prefill, and comes as soon after other frames.
    """
    options = pb.GenerationOptions(include_token_ids=True, sampling=pb.Sampling(max_new_tokens=64))
    with connected(served.address) as stub:

        def frames(first: int) -> list[pb.Image]:
            return [image(4 * index + first % 2) for index in range(7)]

        def after_frames(first: int, ask: Callable[[str], pb.Result]) -> pb.Result:
            study = stub.BeginStudy(pb.BeginStudyRequest()).id
            for frame in frames(first):
                stub.AddImage(pb.AddImageRequest(study=study, image=frame))
            _pause(served)
            result = ask(study)
            stub.EndStudy(pb.EndStudyRequest(study=study))
            return result

        def report(study: str) -> pb.Result:
            return Ask("GenerateReport", pb.GenerateReportRequest(study=study, options=options)).result(stub)

        def answer(words: int) -> pb.Result:
            question = pb.AnswerQuestionRequest(question="so" + " so" * words, options=options)
            return Ask("AnswerQuestion", question).result(stub)

        ahead = after_frames(0, report)
        shortest, longer = (_to_read(answer(words)) for words in (0, 20))
        words = max(0, round(20 * (_to_read(ahead) - shortest) / (longer - shortest)))
        reports, texts = list[float](), list[float]()
        turns = [(reports, report), (texts, lambda _: answer(words))]
        for round_ in range(STUDY_ROUNDS):
            for seconds, ask in turns[:: 1 if round_ % 2 else -1]:
                seconds.append(after_frames(round_, ask).timings.first_token_seconds)
        at_once = Ask("GenerateReport", pb.GenerateReportRequest(images=frames(0), options=options)).result(stub)
    found.study_first_token, found.text_first_token = median(reports), median(texts)
    found.study_equals_one_call = list(at_once.token_ids) == list(ahead.token_ids)


def beside_hostile(served: Soaked, found: Soak) -> None:
    """Measure a report and a health check with and without connections that are held open and never read, alternately."""
    with connected(served.address) as stub, grpc.insecure_channel(served.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        options = pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=64))
        report = Ask("GenerateReport", pb.GenerateReportRequest(images=[image(3)], options=options))

        def measured() -> tuple[float, float]:
            _pause(served)
            reports, checks = list[float](), list[float]()
            for _ in range(5):
                reports.append(_seconds(lambda: report.result(stub)))
                checks.append(_seconds(lambda: health.Check(health_pb2.HealthCheckRequest())))
            return median(reports), median(checks)

        alone, beside = list[tuple[float, float]](), list[tuple[float, float]]()
        for _ in range(BESIDE_ROUNDS):
            alone.append(measured())
            with held_connections(served.address, TOKENS["hostile"]):
                beside.append(measured())
    found.report_alone, found.health_alone = (median(seconds) for seconds in zip(*alone, strict=True))
    found.report_beside_hostile, found.health_beside_hostile = (
        median(seconds) for seconds in zip(*beside, strict=True)
    )


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _to_read(result: pb.Result) -> int:
    """Return how many of its prompt's tokens were not cached."""
    return result.usage.prompt_tokens - result.usage.reused_tokens


def _pause(served: Soaked) -> None:
    """Simulate the pause after the sonographer's last picture, before the request."""
    time.sleep(0.5)
    while served.metric("echovlm_slots_busy") + served.metric("echovlm_waiting"):
        time.sleep(0.05)


def _table(found: Soak) -> Table:
    table = new_table(
        f"{found.bundle}, {CLIENTS} clients, {HOSTILE} of them hostile and {OVER_HTTP} by HTTP, {found.minutes:g} minutes, {found.machine}",
        names("what"),
        names("figure"),
        words("holds"),
    )
    for what, (figure, holds) in found.checks().items():
        table.add_row(what, figure, "yes" if holds else "[red]no[/red]")
    table.caption = ", ".join(f"{count} {name}" for name, count in sorted(found.calls.items()))
    return table


def main() -> int:
    """Run the soak; returns its exit code: 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Load a server for minutes and check what must hold.")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/demo"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, default=Path("soak.json"))
    options = parser.parse_args()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server does not outlive this

    def command() -> int:
        console = Console()
        machine = f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}"
        found = Soak(machine, str(options.bundle), options.minutes)
        with tempfile.TemporaryDirectory() as folder:
            with soaked(options.bundle, Path(folder), "--debug-ignore-stop", "--drafting", "off") as served:
                batching(served, found)
            with soaked(options.bundle, Path(folder)) as served:
                studies(served, found)
                beside_hostile(served, found)
                soak(served, found, console)
        held = {what: holds for what, (_, holds) in found.checks().items()}
        options.json.write_text(json.dumps({**asdict(found), "holds": held}, indent=1), encoding="utf-8")
        print_table(console, _table(found))
        return 0 if all(held.values()) else 1

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
