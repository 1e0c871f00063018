"""Clients through the server: what is cached of one client's images is not to be seen by another, unless they are of one group."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving.access.clients import Client, ClientsFile
from tests.support.clients_file import clients_file
from tests.support.dicom_files import png
from tests.support.running_server import running

CLIENTS = {name: {"token": name} for name in ("cart-1", "cart-2")} | {
    name: {"token": name, "group": "ward"} for name in ("ward-1", "ward-2")
}
ASKED = pb.GenerateReportRequest(
    images=[pb.Image(data=png(200, 140))], options=pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=8))
)


@pytest.fixture
def clients(tmp_path: Path) -> ClientsFile:
    return ClientsFile(clients_file(tmp_path, CLIENTS))


def test_reused_tokens_are_ones_own_or_the_groups(golden_bundle: Path, clients: ClientsFile) -> None:
    with running(golden_bundle, access=clients) as served:

        def ask(name: str) -> pb.Result:
            metadata = (("authorization", f"Bearer {name}"),)
            *_, last = served.stub.GenerateReport(ASKED, metadata=metadata)
            return last.result

        answers = {name: ask(name) for name in CLIENTS}
        again = ask("cart-1")
        misses = served.engine.stats().images.misses
        texts = {answer.text for answer in (*answers.values(), again)}
    reused = {name: answer.usage.reused_tokens for name, answer in answers.items()}
    assert reused["cart-1"] == reused["cart-2"] == reused["ward-1"] == 0
    assert reused["ward-2"] > 0 and again.usage.reused_tokens > 0
    assert misses == 3 and len(texts) == 1


def test_a_groups_scope_is_no_clients() -> None:
    assert Client("ward").scope != Client("cart", group="ward").scope == Client("other", group="ward").scope
    assert Client("cart-1").scope != Client("cart-2").scope
