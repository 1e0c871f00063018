"""Options that ask for more than the bundle can give: refused in a sentence, never lowered in silence."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path

import pytest

from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.serving.supervision import from_settings, serve_command
from tests.support.server_process import server_process

MORE_CONTEXT = (
    "--max-sequence {asked} is more than the bundle's context of {limit} tokens: give at most that many, or build the bundle "
    "with a larger --max-sequence."
)
MORE_SLOTS = (
    "--slots {asked} is more than the {most} that the bundle decodes together: give at most that many, or build the bundle with "
    "--max-batch {asked}."
)


@pytest.fixture
def limit(golden_bundle: Path) -> int:
    return Bundle(golden_bundle).manifest.limits.max_sequence


@pytest.fixture
def bundle(golden_bundle: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise NotPossibleHere("A bundle was loaded.")

    monkeypatch.setattr(from_settings.ReportEngine, "open", opened)


def change(bundle: Path, **entries: object) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | entries))


def refusal(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    assert serve_command.main(["--listen", "127.0.0.1:0", *map(str, options)]) == 2
    return capsys.readouterr().err.splitlines()[-1].removeprefix("error: ")


@pytest.mark.usefixtures("not_loaded")
def test_a_context_above_the_bundles_is_refused_before_it_is_loaded(
    golden_bundle: Path, limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = refusal(capsys, "--bundle", golden_bundle, "--max-sequence", limit + 1)
    assert asked == MORE_CONTEXT.format(asked=limit + 1, limit=limit)
    assert refusal(capsys, "--bundle", golden_bundle, "--max-sequence", limit) == "A bundle was loaded."


@pytest.mark.usefixtures("not_loaded")
def test_more_memory_to_decode_with_than_the_process_may_have_is_refused(
    golden_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, real = 1 << 30, resource.getrlimit
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limit, limit) if kind == resource.RLIMIT_AS else real(kind)
    )
    assert refusal(capsys, "--bundle", golden_bundle, "--decode-mb", 2048) == (
        "--decode-mb 2048 is above this process's limit of address space, 1024 MB (ulimit -Hv): lower it, or raise that limit."
    )
    assert refusal(capsys, "--bundle", golden_bundle, "--decode-mb", 1024) == "A bundle was loaded."
    assert refusal(capsys, "--bundle", golden_bundle) == "A bundle was loaded.", "the default asks for nothing"


@pytest.mark.usefixtures("not_loaded")
def test_more_slots_than_a_gpus_bundle_decodes_together_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(capsys, "--bundle", bundle, "--slots", 5) == "A bundle was loaded.", (
        "a CPU decodes any number together"
    )
    limits = Bundle(bundle).manifest.limits
    change(bundle, target="cuda", limits={"max_sequence": limits.max_sequence, "max_batch": 4})
    assert refusal(capsys, "--bundle", bundle, "--slots", 5) == MORE_SLOTS.format(asked=5, most=4)
    assert refusal(capsys, "--bundle", bundle, "--slots", 4) == "A bundle was loaded."
    assert refusal(capsys, "--bundle", bundle) == "A bundle was loaded.", "the default asks for nothing"
    file = tmp_path / "serve.toml"
    file.write_text("slots = 8\n")
    assert refusal(capsys, "--bundle", bundle, "--config", file) == MORE_SLOTS.format(asked=8, most=4)
    monkeypatch.setenv("ECHOVLM_SLOTS", "1")
    assert refusal(capsys, "--bundle", bundle, "--config", file) == "A bundle was loaded."


def test_the_library_refuses_such_a_context(golden_bundle: Path, limit: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        ReportEngine.open(golden_bundle, threads=1, max_sequence=limit + 1)
    assert str(refused.value) == MORE_CONTEXT.format(asked=limit + 1, limit=limit)


def test_a_bundle_that_allows_less_is_not_swapped_in(bundle: Path, limit: int, tmp_path: Path) -> None:
    with server_process(bundle, tmp_path, "--max-sequence", str(limit)) as server:
        server.wait_for("Serving ")
        change(bundle, limits={"max_sequence": limit // 2, "max_batch": 1})
        server.reload()
        why = MORE_CONTEXT.format(asked=limit, limit=limit // 2)
        server.wait_for(f"the new bundle cannot be served, the old one stays: {why}")
        server.stop()
