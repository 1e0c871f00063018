"""What is measured of the server: many clients for minutes, batches, studies, and calls beside hostile connections."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from statistics import median

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from benchmarks.soak.asks import Ask, by_both_doors, image, mixed
from benchmarks.soak.findings import CLIENTS, HOSTILE, OVER_HTTP, Soak
from benchmarks.soak.grpc_clients import Client
from benchmarks.soak.hostile import held_connections
from benchmarks.soak.hostile import started as hostile_client
from benchmarks.soak.http_clients import HttpClient
from benchmarks.soak.served import TOKENS, Soaked, connected
from echovlm.v1 import report_pb2 as pb

WARM_UP_SHARE = 0.3  # fraction of the time after which memory is measured
BATCHING_ROUNDS, STUDY_ROUNDS, BESIDE_ROUNDS = 7, 30, 8


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
