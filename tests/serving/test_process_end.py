"""The real command is stopped or reloaded while something hangs, loads, or is damaged."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.bundle.manifest import CHAT_TEMPLATE, TOKENIZER
from echovlm_edge.runtime.observability import logs
from tests.support.dicom_files import png
from tests.support.server_process import server_process

# A thread in C that nothing ends, as one that waits for a GPU; it holds no lock of Python's.
HANG = """
import ctypes, threading
pause = ctypes.CDLL(None).pause
def hang(*_):
    print("it hangs", flush=True)
    while True:
        pause()
"""
HUNG_DECODER = (
    HANG
    + """
from echovlm_edge.runtime.backends.gpu.backend import GpuBackend
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
def turn(*_):
    threading.Thread(target=hang).start()  # as a library's own, which Python waits for at its end
    hang()
GpuBackend.turn = OnnxRuntimeBackend.turn = turn
# As a destructor that waits for the threads of its library:
ctypes.CDLL(None).__cxa_atexit(ctypes.cast(pause, ctypes.c_void_p), None, None)
"""
)
HUNG_LOAD = (
    HANG
    + """
import sys
from echovlm_edge.runtime.engine.report_engine import ReportEngine
load, loads = ReportEngine.open, []
def open_(*given, **named):
    loads.append(given)
    if len(loads) == HANGS_AT:
        hang()
    return load(*given, **named)
ReportEngine.open = open_
"""
)


@pytest.fixture
def bundle(golden_bundle: Path, tmp_path: Path) -> Path:
    """One that a test may damage."""
    return Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))


def test_the_end_is_quiet_and_running_calls_have_their_grace(golden_bundle: Path, tmp_path: Path) -> None:
    with (
        server_process(golden_bundle, tmp_path, "--grace", "60", "--log", "json", "--debug-ignore-stop") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        options = pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=300))
        asked = pb.GenerateReportRequest(images=[pb.Image(data=png(64, 64))], options=options)
        call = report_pb2_grpc.ReportServiceStub(channel).GenerateReport(asked)
        next(event for event in call if event.text)
        server.tell(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        *_, last = call
        assert last.result.usage.generated_tokens == 300, "the running call was cut off"
        assert server.end() == 0
        assert server.output.startswith("Serving ")
        warning, call_line = (json.loads(line)["message"] for line in server.log)
        assert "--debug-ignore-stop" in warning and call_line == "call", server.said


def test_a_decoder_that_hangs_does_not_keep_the_process(golden_bundle: Path, tmp_path: Path) -> None:
    with (
        server_process(golden_bundle, tmp_path, "--grace", "0.2", "--skip-golden", patch=HUNG_DECODER) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        asked = pb.GenerateReportRequest(images=[pb.Image(data=png(64, 64))])
        call = report_pb2_grpc.ReportServiceStub(channel).GenerateReport(asked)
        server.wait_for("it hangs")
        server.stop()
        with pytest.raises(grpc.RpcError):
            list(call)


def test_an_image_decoder_that_hangs_does_not_keep_the_process(golden_bundle: Path, tmp_path: Path) -> None:
    options = ("--grace", "0.2", "--decode-seconds", "600")
    with server_process(golden_bundle, tmp_path, *options) as server, grpc.insecure_channel(server.address) as channel:
        for worker in psutil.Process(server.process.pid).children():
            worker.suspend()
        asked = pb.GenerateReportRequest(images=[pb.Image(data=png(64, 64))])
        call = report_pb2_grpc.ReportServiceStub(channel).GenerateReport(asked)
        assert next(call).stage_started == pb.STAGE_DECODING_IMAGES
        server.stop()


def test_told_to_stop_while_the_first_bundle_loads(golden_bundle: Path, tmp_path: Path) -> None:
    patch = "HANGS_AT = 1\n" + HUNG_LOAD
    with server_process(golden_bundle, tmp_path, patch=patch) as server:
        server.wait_for("it hangs")
        server.reload()  # which must not end it, and must not hide the stop
        server.stop()
        assert "Serving" not in server.said


def test_told_to_stop_while_another_bundle_loads(golden_bundle: Path, tmp_path: Path) -> None:
    patch = "HANGS_AT = 2\n" + HUNG_LOAD
    with server_process(golden_bundle, tmp_path, patch=patch) as server:
        assert server.address
        server.reload()
        server.wait_for("it hangs")
        server.stop()


def test_many_reloads_are_one_and_do_not_hold_up_the_end(golden_bundle: Path, tmp_path: Path) -> None:
    with server_process(golden_bundle, tmp_path, "--grace", "0.2") as server:
        assert server.address
        for _ in range(1500):
            server.reload()
        server.stop()
        assert server.said.count("another bundle has taken over") < 20


def test_a_reload_that_comes_while_one_runs_is_made_after_it(golden_bundle: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    patch = f"""
from echovlm_edge.runtime.engine.report_engine import ReportEngine
load, loads = ReportEngine.open, []
def open_(*given, **named):
    loads.append(given)
    if len(loads) == 2:
        print("it loads", flush=True)
        open({str(gate)!r}).close()  # until the test opens the other end
    return load(*given, **named)
ReportEngine.open = open_
"""
    with server_process(golden_bundle, tmp_path, patch=patch) as server:
        assert server.address
        server.reload()
        server.wait_for("it loads")
        for _ in range(3):
            server.reload()
        gate.open("w").close()
        server.wait_for("another bundle has taken over", 2)
        server.stop()
        assert server.said.count("another bundle has taken over") == 2


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)
        yield notify


def test_a_service_manager_is_told_of_each_state(bundle: Path, tmp_path: Path, manager: socket.socket) -> None:
    def received() -> list[str]:
        return manager.recv(1000).decode().splitlines()

    env = {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}
    with server_process(bundle, tmp_path, env=env) as server:
        assert received() == ["READY=1"]
        last = 0
        for damage in (lambda: None, (bundle / TOKENIZER).unlink):
            damage()
            server.reload()
            state, moment = received()
            assert state == "RELOADING=1" and moment.startswith("MONOTONIC_USEC=")
            assert int(moment.partition("=")[2]) > last
            last = int(moment.partition("=")[2])
            assert received() == ["READY=1"], "a reload that failed leaves a server that serves"
        server.stop()
        assert received() == ["STOPPING=1"]
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            received()


@pytest.mark.parametrize("name", [TOKENIZER, CHAT_TEMPLATE])
def test_a_damaged_file_is_one_sentence_at_the_start_and_at_a_reload(name: str, bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / name).read_bytes()
    damaged = b"\xff\xfe{%" + whole[4:]
    with server_process(bundle, tmp_path) as server:
        assert server.address
        (bundle / name).write_bytes(damaged)
        server.reload()
        server.wait_for("the new bundle cannot be served, the old one stays")
        (line,) = [line for line in server.said.splitlines() if "cannot be served" in line]
        assert str(bundle / name) in line and "build the bundle again" in line
        server.stop()
    with server_process(bundle, tmp_path) as server:
        assert server.end() == 2
        (line,) = server.log
        assert line.startswith("error: ") and str(bundle / name) in line and "build the bundle again" in line


def test_what_nobody_catches_is_one_line_without_its_text(golden_bundle: Path, tmp_path: Path) -> None:
    patch = """
import threading
from echovlm_edge.runtime.serving.supervision import serve_command
class Finalized:
    def __del__(self):
        raise ValueError("Jane Doe, 1950")
def fail():
    raise ValueError("Jane Doe, 1950")
end = serve_command.end_process
def end_process(*given):
    Finalized()
    threading.Thread(target=fail, name="one of many").start()
    end(*given)
serve_command.end_process = end_process
"""
    with server_process(golden_bundle, tmp_path, "--log", "json", patch=patch) as server:
        assert server.address
        server.tell(signal.SIGTERM)
        assert server.end() == 0
        assert all(line.startswith("{") for line in server.log), server.said
        assert "thread one of many failed with ValueError (<string>" in server.said
        assert "a finalizer failed with ValueError" in server.said
        assert "Jane" not in server.said


def test_what_an_event_loops_task_raises_is_one_line_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("Jane Doe, 1950")

    async def forget() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(logs.log_uncaught_in_loop)
        loop.create_task(fail())  # noqa: RUF006
        await asyncio.sleep(0)
        gc.collect()
        loop.call_exception_handler({"message": "Jane Doe, 1950"})

    asyncio.run(forget())
    first, second = caplog.messages
    assert first.startswith("an asynchronous task failed with ValueError (test_process_end.py:") and "fail" in first
    assert second == "the event loop reported a fault" and "Jane" not in caplog.text
