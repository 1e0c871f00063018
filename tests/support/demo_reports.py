"""Generate reports about simulated studies through the real gRPC server, for bundles of the demo checkpoint."""

from __future__ import annotations

from pathlib import Path

from demo.dicom_writer import dicom_bytes
from demo.simulate import simulate
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.request import ImageInput, Sampling
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
SEEDS = (27, 28, 29)


def reports(engine: ReportEngine) -> list[tuple[int, ...]]:
    """Return the token ids of one greedy report per study and language."""
    server = ReportServer(engine, ServerOptions("127.0.0.1:0"))
    try:
        with Connection(server.address) as client:
            return [_report(client, seed, language) for seed in SEEDS for language in Language]
    finally:
        server.stop()


def _report(client: Connection, seed: int, language: Language) -> tuple[int, ...]:
    study = simulate(seed)
    image = ImageInput(dicom_bytes(study.image, study.truth, study.seed))
    request = ReportRequest(
        images=[image], language=language, sampling=Sampling(max_new_tokens=48), include_token_ids=True
    )
    *_, last = client.generate(request)
    return tuple(last.result.token_ids)
