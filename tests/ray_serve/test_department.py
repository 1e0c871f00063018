"""deploy/ray_serve.py with two replicas, called through its gRPC port: the same text, a study's calls at its replica, nobody unknown.

Ray listens on every address. So it runs in a network namespace that has nothing but loopback.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.ray_serve.routing import study_of
from echovlm_edge.runtime.serving.supervision.serve_settings import as_environment, read_settings
from tests.support import golden
from tests.support.authority import Authority
from tests.support.clients_file import clients_file
from tests.support.questions import question, result
from tests.support.running_server import running
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, str(ROOT / "deploy" / "ray_serve.py")]
NAMESPACE = ["unshare", "--map-root-user", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"]
TLS_PORT, PLAIN_PORT = 50051, 9000
# Ray Serve gives a proxy 5 s to start, and starts another one after three times that, which busy processors exceed.
PATIENT = {**os.environ, "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
IMAGES = [pb.Image(data=image.read_bytes()) for image in golden.load("two_images_zh").images]
SECRET = "the-token-of-cart-7"
TOKEN = (("authorization", f"Bearer {SECRET}"),)


@dataclass(frozen=True)
class Department:
    """A running one, and the ways in."""

    stub: report_pb2_grpc.ReportServiceStub
    channel: grpc.Channel
    plain: grpc.Channel
    log: Path


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    if not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here: unshare(1) is missing or forbidden")
    return NAMESPACE


@pytest.fixture(scope="module")
def department(
    namespace: list[str], golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Department]:
    folder = tmp_path_factory.mktemp("department")
    authority = Authority(folder)
    certificate, key = authority.issue("server", "localhost")
    clients = clients_file(folder, {"cart-7": {"token": SECRET}})
    secure, plain, log = folder / "secure", folder / "plain", folder / "log"
    script = (
        f'ip link set lo up; "{sys.executable}" "{ROOT}/tests/support/unix_door.py" "{secure}={TLS_PORT}" "{plain}={PLAIN_PORT}" & '
        'exec "$0" "$@"'
    )
    options: dict[str, object] = {
        "--replicas": 2,
        "--cpus": 1,
        "--bundle": golden_bundle,
        "--listen": f"127.0.0.1:{TLS_PORT}",
        "--tls-certificate": certificate,
        "--tls-key": key,
        "--clients": clients,
        "--slots": 2,
    }
    words = [str(word) for option in options.items() for word in option]
    with (
        log.open("w") as said,
        subprocess.Popen(
            [*namespace, "sh", "-c", script, *COMMAND, "--local", *words], stdout=said, stderr=said, env=PATIENT
        ) as ray,
    ):
        try:
            wait_for(lambda: "Serving " in log.read_text() or ray.poll() is not None, 120)
            assert ray.poll() is None, log.read_text()
            trusted = grpc.ssl_channel_credentials(authority.ca_file.read_bytes())
            named = [("grpc.ssl_target_name_override", "localhost")]
            with (
                grpc.secure_channel(f"unix:{secure}", trusted, named) as channel,
                grpc.insecure_channel(f"unix:{plain}") as outside,
            ):
                yield Department(report_pb2_grpc.ReportServiceStub(channel), channel, outside, log)
        finally:
            ray.kill()  # the namespace ends with it, and all that is in it


def status(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code()  # type: ignore[no-any-return]


def test_the_text_is_a_plain_servers(department: Department, golden_bundle: Path) -> None:
    asked = pb.GenerateReportRequest(images=IMAGES, options=question(16).options)
    with running(golden_bundle) as served:
        alone = result(served.stub.GenerateReport(asked))
    events = department.stub.GenerateReport(asked, metadata=TOKEN, timeout=60)
    *deltas, last = events
    assert last.result.text == alone.text
    assert list(last.result.token_ids) == list(alone.token_ids)
    assert "".join(delta.text for delta in deltas) == alone.text
    assert "x-request-id" in dict(events.trailing_metadata())


def test_health_needs_no_token(department: Department) -> None:
    answer = health_pb2_grpc.HealthStub(department.channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_studys_calls_find_the_replica_that_has_it(department: Department) -> None:
    stub = department.stub
    studies = [stub.BeginStudy(pb.BeginStudyRequest(), metadata=TOKEN, timeout=20).id for _ in range(16)]
    assert len({study.partition(".")[0] for study in studies}) == 2  # missed once in 32,768 times, were it a coin
    for study in studies:
        added = [
            stub.AddImage(pb.AddImageRequest(study=study, image=image), metadata=TOKEN, timeout=60) for image in IMAGES
        ]
        assert [image.number for image in added] == [1, 2]
    texts = set()
    for study in studies[:4]:
        asked = pb.GenerateReportRequest(study=study, options=question(8).options)
        texts.add(result(stub.GenerateReport(asked, metadata=TOKEN, timeout=60)).text)
    whole = pb.GenerateReportRequest(images=IMAGES, options=question(8).options)
    assert texts == {result(stub.GenerateReport(whole, metadata=TOKEN, timeout=60)).text}
    stub.WithdrawImage(pb.WithdrawImageRequest(study=studies[0], number=1), metadata=TOKEN, timeout=20)
    for study in studies:
        stub.EndStudy(pb.EndStudyRequest(study=study), metadata=TOKEN, timeout=20)
    gone = pb.AddImageRequest(study=studies[0], image=IMAGES[0])
    assert status(lambda: stub.AddImage(gone, metadata=TOKEN, timeout=20)) is grpc.StatusCode.NOT_FOUND


def test_a_study_of_a_replica_that_is_gone_is_not_found(department: Department) -> None:
    gone = pb.EndStudyRequest(study="nobody.whatever")
    code = status(lambda: department.stub.EndStudy(gone, metadata=TOKEN, timeout=20))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_department_takes_no_uploads_and_says_so(department: Department) -> None:
    stub = department.stub
    info = stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=TOKEN, timeout=20)
    assert info.limits.max_upload_bytes == 0
    with pytest.raises(grpc.RpcError, match="takes no uploads: send the file, or those of its frames") as refused:
        stub.Upload(iter([pb.UploadRequest(data=b"data")]), metadata=TOKEN, timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    uploaded = pb.GenerateReportRequest(images=[pb.Image(upload="guessed")])
    for call in (
        lambda: list(stub.GenerateReport(uploaded, metadata=TOKEN, timeout=20)),
        lambda: stub.ForgetUpload(pb.ForgetUploadRequest(id="guessed"), metadata=TOKEN, timeout=20),
    ):
        assert status(call) is grpc.StatusCode.NOT_FOUND
    data = iter([pb.UploadRequest(data=b"data")])
    assert status(lambda: stub.Upload(data, timeout=20)) is grpc.StatusCode.UNAUTHENTICATED


def test_a_department_lists_no_studies_and_says_so(department: Department) -> None:
    ask = department.stub.ListStudies
    with pytest.raises(grpc.RpcError, match="does not list studies") as refused:
        ask(pb.ListStudiesRequest(), metadata=TOKEN, timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    assert status(lambda: ask(pb.ListStudiesRequest(), timeout=20)) is grpc.StatusCode.UNAUTHENTICATED


def test_nobody_unknown_gets_in(department: Department) -> None:
    info = pb.GetModelInfoRequest()
    wrong = (("authorization", "Bearer nonsense"),)
    plain = report_pb2_grpc.ReportServiceStub(department.plain)
    for call in (
        lambda: department.stub.GetModelInfo(info, timeout=20),
        lambda: department.stub.GetModelInfo(info, metadata=wrong, timeout=20),
        lambda: list(department.stub.AnswerQuestion(question(4), metadata=wrong, timeout=20)),
        lambda: plain.GetModelInfo(info, metadata=TOKEN, timeout=20),  # a known token, where all can read it
    ):
        assert status(call) is grpc.StatusCode.UNAUTHENTICATED
    assert department.stub.GetModelInfo(info, metadata=TOKEN, timeout=20).precision == "fp32"
    wait_for(lambda: "refused an unknown client" in department.log.read_text(), 20)  # Ray brings lines from replicas
    said = department.log.read_text()
    assert SECRET not in said
    assert "nonsense" not in said


def test_whoever_goes_frees_the_place(department: Department) -> None:
    for _ in range(8):  # four times as many as both replicas' slots
        call = department.stub.AnswerQuestion(question(100), metadata=TOKEN, timeout=60)
        next(call)
        call.cancel()
    answers = [result(department.stub.AnswerQuestion(question(4), metadata=TOKEN, timeout=60)) for _ in range(4)]
    assert {len(answer.token_ids) for answer in answers} == {4}


def test_many_at_once_are_all_answered_alike(department: Department) -> None:
    texts: list[str] = []

    def ask() -> None:
        texts.append(result(department.stub.AnswerQuestion(question(8), metadata=TOKEN, timeout=120)).text)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 12
    assert len(set(texts)) == 1


def test_the_proxy_reads_what_the_driver_was_told(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = read_settings(["--bundle", str(golden_bundle), "--slots", "3", "--verify", "--insecure", "--insecure"])
    assert told is not None
    for name, value in as_environment(told).items():
        monkeypatch.setenv(name, value)
    assert read_settings([]) == told


def test_a_router_reads_the_study_from_what_the_proxy_has_packed() -> None:
    packed = pickle.dumps(SimpleNamespace(user_request_proto=pb.EndStudyRequest(study="a.b")))
    assert study_of(SimpleNamespace(args=(packed,))) == "a.b"  # type: ignore[arg-type]
    packed = pickle.dumps(SimpleNamespace(user_request_proto=pb.GetModelInfoRequest()))
    assert study_of(SimpleNamespace(args=(packed,))) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "would be served without TLS"),
        (("--insecure", "--insecure", "--metrics", "127.0.0.1:9100"), "are for one server"),
        (("--insecure", "--insecure", "--http", "127.0.0.1:8080"), "--http is for one server"),
        (("--insecure", "--insecure", "--tls-key", "key.pem"), "needs both"),
        (("--insecure", "--insecure"), "No Ray cluster runs on this computer"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    namespace: list[str], golden_bundle: Path, words: tuple[str, ...], sentence: str
) -> None:
    # In a namespace, where no other cluster is seen.
    asked = [*namespace, *COMMAND, "--bundle", str(golden_bundle), *words]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
