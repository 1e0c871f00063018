"""A new bundle that cannot be served: the one before it serves, calls are answered, and log, metrics and GetModelInfo say why."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.request import urlopen

import pytest

from benchmarks.served import free_port
from echovlm_edge.runtime.bundle import command
from echovlm_edge.runtime.bundle.installed import PREVIOUS
from echovlm_edge.runtime.bundle.manifest import MANIFEST, bundle_at
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.serving.supervision import serve_command
from tests.support.changed_bundles import numbered, with_a_wrong_golden_token, without_golden_tokens
from tests.support.questions import question, result
from tests.support.server_process import server_process
from tests.support.signing import Keys, new_keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return new_keys(tmp_path)


@pytest.fixture
def folder(golden_bundle: Path, tmp_path: Path, keys: Keys) -> Path:
    """A folder of bundles whose only one is number 1, signed."""
    folder, bundle = tmp_path / "bundles", numbered(golden_bundle, tmp_path / "one", 1)
    bundle_command("sign", bundle, "--key", keys.secret)
    bundle_command("install", bundle, folder)
    return folder


def bundle_command(*arguments: object) -> None:
    assert command.main(list(map(str, arguments))) == 0


def changed_byte(bundle: Path) -> str:
    data = bundle / "decoder.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    return f"{data} has changed since it was built"


def truncated(bundle: Path) -> str:
    (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes()[:1000])
    return f"{bundle / MANIFEST} has changed since it was signed"


def other_signature(bundle: Path) -> str:
    bundle_command("sign", bundle, "--key", new_keys(bundle.parent, "other").secret)
    return f"{bundle / MANIFEST} is signed by the key"


def no_signature(bundle: Path) -> str:
    (bundle / "bundle.json.minisig").unlink()
    return f"{bundle / MANIFEST} is not signed"


FAULTS: dict[str, Callable[[Path], str]] = {
    "a changed byte": changed_byte,
    "a truncated manifest": truncated,
    "another's signature": other_signature,
    "no signature": no_signature,
}


def serves(client: Connection, number: int) -> str:
    """Check that calls are answered by a bundle; returns why it is not the one that is installed."""
    info = client.model_info()
    assert int(info.bundle_id, 16) == number
    assert result(client._stub.AnswerQuestion(question(5))).usage.generated_tokens == 5
    return info.refused_bundle


def refused_metric(port: int) -> float:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("echovlm_bundle_refused ")]
    return float(line.split()[1])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_bundle_is_not_served(
    fault: str, golden_bundle: Path, folder: Path, keys: Keys, tmp_path: Path
) -> None:
    two = numbered(golden_bundle, tmp_path / "two", 2)
    bundle_command("sign", two, "--key", keys.secret)
    bundle_command("install", two, folder)
    why = FAULTS[fault](bundle_at(folder))
    with server_process(folder, tmp_path, "--require-signature", str(keys.public)) as server:
        with Connection(server.address) as client:
            assert why in serves(client, 1)
        assert "the current bundle cannot be served, the previous one is loaded: " in server.said and why in server.said
        server.stop()


def test_a_bundle_that_does_not_write_its_golden_tokens_is_rolled_back(
    golden_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    wrong = with_a_wrong_golden_token(golden_bundle, tmp_path / "wrong", 2)
    right = numbered(golden_bundle, tmp_path / "right", 3)
    port = free_port()
    with (
        server_process(folder, tmp_path, "--metrics", f"127.0.0.1:{port}") as server,
        Connection(server.address) as client,
    ):
        assert serves(client, 1) == "" and refused_metric(port) == 0
        bundle_command("install", wrong, folder)
        server.reload()
        server.wait_for("the new bundle cannot be served, the old one stays: The bundle")
        assert "does not write its golden tokens" in serves(client, 1) and refused_metric(port) == 1
        bundle_command("rollback", folder)
        server.reload()
        server.wait_for("another bundle has taken over")
        assert serves(client, 1) == "" and refused_metric(port) == 0
        bundle_command("install", right, folder)
        server.reload()
        server.wait_for("another bundle has taken over", count=2)
        assert serves(client, 3) == ""
        server.stop()
    bundle_command("install", wrong, folder)
    with server_process(folder, tmp_path) as server, Connection(server.address) as client:
        assert "does not write its golden tokens" in serves(client, 3)
        assert "the current bundle cannot be served, the previous one is loaded" in server.said
        server.stop()
    bundle_command("install", numbered(golden_bundle, tmp_path / "four", 4), folder)
    assert (folder / PREVIOUS).readlink().name.startswith("right-"), "the good one, not the refused one"
    bundle_command("install", wrong, folder)
    with server_process(folder, tmp_path, "--skip-golden") as server, Connection(server.address) as client:
        assert serves(client, 2) == ""
        server.stop()


def test_a_single_bundle_that_fails_is_refused(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = with_a_wrong_golden_token(golden_bundle, tmp_path / "wrong", 2)
    assert serve_command.main(["--bundle", str(wrong), "--listen", "127.0.0.1:0"]) == 2
    assert f"error: The bundle {wrong} does not write its golden tokens" in capsys.readouterr().err


def test_two_bundles_that_fail_are_refused_with_the_current_ones_reason(
    golden_bundle: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle_at(folder) / "tokenizer.json").unlink()
    bundle_command("install", with_a_wrong_golden_token(golden_bundle, tmp_path / "wrong", 2), folder)
    assert serve_command.main(["--bundle", str(folder), "--listen", "127.0.0.1:0"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: The bundle") and "golden tokens" in last


def test_a_current_bundle_that_is_gone_is_replaced_by_the_previous_one(
    golden_bundle: Path, folder: Path, tmp_path: Path
) -> None:
    bundle_command("install", numbered(golden_bundle, tmp_path / "two", 2), folder)
    shutil.rmtree(bundle_at(folder))
    with server_process(folder, tmp_path) as server, Connection(server.address) as client:
        assert serves(client, 1) == f"There is no bundle at {folder / 'current'}: build one with echovlm-build."
        server.stop()


def test_an_older_bundle_is_served_with_a_line_in_the_log(golden_bundle: Path, tmp_path: Path) -> None:
    with server_process(without_golden_tokens(golden_bundle, tmp_path / "older"), tmp_path) as server:
        with Connection(server.address) as client:
            assert client.model_info().refused_bundle == ""
        server.wait_for("the bundle has no golden tokens")
        server.stop()
