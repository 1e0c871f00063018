"""A bundle that ends the server's process while it is loaded: after two crashes the one before it serves; a stop is no crash."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from benchmarks.served import free_port
from echovlm_edge.runtime.bundle.installed import install
from echovlm_edge.runtime.bundle.loads import LOADS
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.doctor import command as doctor
from tests.support.changed_bundles import numbered
from tests.support.server_process import ServerProcess, server_process

WHEN_TWO_IS_LOADED = """
import ctypes, os, signal, sys, time
def hook(event, arguments):
    if event == "open" and "/two-" in str(arguments[0]) and str(arguments[0]).endswith("/golden_tokens.json"):
        {}
sys.addaudithook(hook)
"""
KILLED = WHEN_TWO_IS_LOADED.format("os.kill(os.getpid(), signal.SIGKILL)")  # as the kernel does where memory is short
SEGFAULT = WHEN_TWO_IS_LOADED.format("ctypes.string_at(0)")
WHY = "has ended the server's process 2 times while it was loaded"
STOPPED = WHEN_TWO_IS_LOADED.format("os.kill(os.getpid(), signal.SIGTERM); time.sleep(3600)")


@pytest.fixture
def two(golden_bundle: Path, tmp_path: Path) -> Path:
    return numbered(golden_bundle, tmp_path / "two", 2)


@pytest.fixture
def folder(golden_bundle: Path, two: Path, tmp_path: Path) -> Path:
    """A folder of bundles whose current one is number 2, and the previous one number 1."""
    folder = tmp_path / "bundles"
    install(numbered(golden_bundle, tmp_path / "one", 1), folder)
    install(two, folder)
    return folder


def serves(server: ServerProcess, number: int) -> str:
    """Check which bundle serves; returns why the other one does not."""
    with Connection(server.address) as client:
        info = client.model_info()
    assert int(info.bundle_id, 16) == number and bool(info.refused_bundle) == (info.refused_bundle_name[:4] == "two-")
    return info.refused_bundle


def ends(folder: Path, place: Path, patch: str) -> int:
    """Start a server that ends by itself while it loads; returns its exit code."""
    with server_process(folder, place, patch=patch) as server:
        return server.end()


def test_one_crash_may_be_a_power_failure(folder: Path, tmp_path: Path) -> None:
    assert ends(folder, tmp_path, KILLED) == -9
    with server_process(folder, tmp_path) as server:
        assert serves(server, 2) == ""
        server.stop()
    assert not list((folder / LOADS).iterdir()), "what serves is no longer under suspicion"


def test_after_two_crashes_the_previous_bundle_serves(folder: Path, two: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert ends(folder, tmp_path, SEGFAULT) == -11
    with server_process(folder, tmp_path, patch=SEGFAULT) as server:
        assert WHY in serves(server, 1)
        assert "the current bundle cannot be served, the previous one is loaded: " in server.said
        server.stop()
    install(two, folder)
    with server_process(folder, tmp_path) as server:
        assert serves(server, 2) == "", "installed again, it is tried again"
        server.stop()


def test_a_server_that_is_stopped_while_it_loads_has_not_crashed(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert ends(folder, tmp_path, STOPPED) == 0
    assert not list((folder / LOADS).iterdir())
    with server_process(folder, tmp_path) as server:
        assert serves(server, 2) == ""
        server.stop()


def test_a_reload_that_crashes_counts(golden_bundle: Path, folder: Path, two: Path, tmp_path: Path) -> None:
    install(tmp_path / "one", folder)
    with server_process(folder, tmp_path, patch=KILLED) as server:
        assert serves(server, 1) == ""
        install(two, folder)
        server.reload()
        assert server.end() == -9
    assert ends(folder, tmp_path, KILLED) == -9
    install(numbered(golden_bundle, tmp_path / "three", 3), folder)
    (folder / "current" / "tokenizer.json").unlink()
    with server_process(folder, tmp_path, patch=KILLED) as server:
        with Connection(server.address) as client:
            info = client.model_info()
            assert int(info.bundle_id, 16) == 1 and info.refused_bundle_name.startswith("three-")
        server.stop()


def test_every_door_says_which_bundle_is_refused_and_why(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        ends(folder, tmp_path, KILLED)
    refused = (folder / "current").readlink().name
    http, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with server_process(folder, tmp_path, "--http", http, "--metrics", metrics) as server:
        assert WHY in serves(server, 1)
        answers = {path: httpx.get(f"http://{http}{path}").json() for path in ("/health", "/v1/service", "/v1/models")}
        (line,) = [
            line for line in httpx.get(f"http://{metrics}/metrics").text.splitlines() if "refused_bundle_info{" in line
        ]
        server.stop()
    health, state, (model,) = answers["/health"], answers["/v1/service"], answers["/v1/models"]["data"]
    assert health == {"status": "serving", "refused_bundle": {"name": refused}}, "who has no token sees no path"
    assert state["refused_bundle"]["name"] == refused and WHY in state["refused_bundle"]["reason"]
    assert model["echovlm"]["refused_bundle_name"] == refused and WHY in model["echovlm"]["refused_bundle"]
    assert line == f'echovlm_refused_bundle_info{{bundle="{refused}"}} 1.0'
    capsys.readouterr()
    assert doctor.main(["--bundle", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["bundles"]
    assert [one["level"] for one in found if WHY in one["what"] and refused in one["what"]] == ["wrong"]
