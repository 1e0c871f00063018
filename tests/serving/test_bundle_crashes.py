"""A bundle that ends the server's process while it is loaded: after two crashes the one before it serves; a stop is no crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.served import free_port
from echovlm_edge.runtime.bundle.installed import install, linked
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
GIVES_UP = """
import sys, threading, time
from echovlm_edge.runtime.serving.supervision import from_settings
from echovlm_edge.runtime.serving.supervision.bundle_choice import BundleChoice
from echovlm_edge.runtime.serving.supervision.serve_settings import read_settings

class Engine:
    hangs = False
    def seconds_in_turn(self): return 1e6 if self.hangs else 0
    def close(self, reason=None): pass

class Decode:
    def ready(self): pass

engines = []
def open_bundle(path):
    if engines:
        engines[0].hangs = True
        time.sleep(3600)
    engines.append(Engine())
    return engines[0]

chosen = read_settings(["--bundle", sys.argv[1]])
choice = BundleChoice(chosen.bundle, open_bundle)
from_settings.served_engine(chosen, choice, Decode(), 0).swap()
"""
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


def test_a_sole_bundle_is_loaded_however_often_it_crashed(two: Path, tmp_path: Path) -> None:
    sole = tmp_path / "sole"
    install(two, sole)
    for _ in range(3):
        assert ends(sole, tmp_path, KILLED) == -9
    assert len(list((sole / LOADS).glob("*.loading-*"))) == 2, "records do not grow without end"
    with server_process(sole, tmp_path) as server:
        assert serves(server, 2) == ""
        assert "nothing else can serve, so that a bundle is loaded whose loading ended the process: " in server.said
        server.stop()
    assert not list((sole / LOADS).iterdir())


@pytest.mark.parametrize("crashed", ("current", "previous"))
def test_a_bundle_that_crashed_is_better_than_a_damaged_one(crashed: str, folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert ends(folder, tmp_path, KILLED) == -9
    one, two = (linked(folder, name) for name in ("previous", "current"))
    assert one and two
    (one / "tokenizer.json").unlink()
    if crashed == "previous":
        for link, bundle in (("current", one), ("previous", two)):
            (folder / link).unlink()
            (folder / link).symlink_to(bundle.name)
    with server_process(folder, tmp_path) as server, Connection(server.address) as client:
        info = client.model_info()
        assert int(info.bundle_id, 16) == 2 and info.refused_bundle_name == ("" if crashed == "current" else one.name)
        server.stop()


def test_a_watchdog_that_gives_up_accuses_no_bundle(folder: Path) -> None:
    program = [sys.executable, "-c", GIVES_UP, folder]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 70, done.stderr
    assert not list((folder / LOADS).iterdir())


def test_a_name_that_is_not_utf_8_is_said_at_every_door(folder: Path, two: Path, tmp_path: Path) -> None:
    odd = two.rename(folder / os.fsdecode(b"d\xfcr"))
    (folder / "current").unlink()
    (folder / "current").symlink_to(odd.name)
    (folder / "previous").unlink(missing_ok=True)
    (one,) = folder.glob("one-*")
    (folder / "previous").symlink_to(one.name)
    http, metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with server_process(folder, tmp_path, "--http", http, "--metrics", metrics, "--log", "json") as server:
        with Connection(server.address) as client:
            info = client.model_info()
        answers = [httpx.get(f"http://{http}{path}") for path in ("/health", "/v1/service", "/v1/models")]
        answers.append(httpx.get(f"http://{metrics}/metrics"))
        server.stop()
    assert info.refused_bundle_name == r"d\udcfcr" and "is not UTF-8" in info.refused_bundle
    for answer in answers:
        assert answer.status_code == 200 and r"\udcfcr" in answer.text
    with server_process(odd, tmp_path) as server:
        assert server.end() == 2 and "is not UTF-8" in server.said and "Traceback" not in server.said


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
