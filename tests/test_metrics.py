"""What an operator sees: metrics that a Prometheus parser reads and that follow what was done."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.errors import NotPossibleHere
from tests.dicom_files import png
from tests.running_server import Running, running

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def served(golden_bundle: Path) -> Iterator[Running]:
    with running(golden_bundle) as server:
        yield server


@pytest.fixture(scope="module")
def port(served: Running) -> Iterator[int]:
    server = served.metrics.serve("127.0.0.1", 0)
    yield server.server_port
    server.shutdown()


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return after[key] - before.get(key, 0.0)


def test_figures_follow_what_was_done(served: Running, port: int) -> None:
    before = scrape(port)
    asked = pb.GenerateReportRequest(
        images=[pb.Image(data=png(96, 72))], options=pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=9))
    )
    results = [list(served.stub.GenerateReport(asked))[-1].result for _ in range(2)]
    with pytest.raises(grpc.RpcError):
        list(served.stub.GenerateReport(pb.GenerateReportRequest(images=[pb.Image(data=b"text")])))
    study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
    served.stub.AddImage(pb.AddImageRequest(study=study, image=pb.Image(data=png(64, 64))))
    after = scrape(port)
    report = {"method": "GenerateReport", "client": "anybody"}
    assert grown(before, after, "echovlm_calls_total", **report, outcome="ok") == 2
    assert grown(before, after, "echovlm_calls_total", **report, outcome="invalid_argument") == 1
    assert grown(before, after, "echovlm_tokens_total", kind="written") == 18
    assert grown(before, after, "echovlm_tokens_total", kind="reused") >= results[1].usage.reused_tokens > 0
    assert grown(before, after, "echovlm_image_hits_total") == 1
    for stage in ("vision", "prefill", "decode"):
        assert grown(before, after, "echovlm_stage_seconds_count", stage=stage) >= 1
    assert grown(before, after, "echovlm_first_token_seconds_count") == 2
    assert after["echovlm_slots", ()] == 8 and after["echovlm_prefix_bytes", ()] > 0
    assert after["echovlm_studies", ()] == 1 and after["echovlm_study_bytes", ()] == 64 * 64 * 3


def test_a_taken_metrics_port_is_one_sentence(served: Running, port: int) -> None:
    with pytest.raises(NotPossibleHere, match="cannot be served"):
        served.metrics.serve("127.0.0.1", port)
