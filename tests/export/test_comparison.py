"""`echovlm-build --compare`: the same checkpoint in several formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echovlm_edge.export import build_engines
from echovlm_edge.export.parity.comparison import Nearness
from echovlm_edge.export.parity.weight_format import WeightFormat
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from tests.support import golden


@pytest.mark.parametrize(
    ("text", "expected", "folder"),
    [
        ("int4", WeightFormat("int4", 128, "search"), "int4-128-search"),
        ("int8/64", WeightFormat("int8", 64, "search"), "int8-64-search"),
        ("int4/32/plain", WeightFormat("int4", 32, "plain"), "int4-32-plain"),
        ("fp16", WeightFormat("fp16", 128, "search"), "fp16"),
    ],
)
def test_a_format_is_one_word(text: str, expected: WeightFormat, folder: str) -> None:
    assert WeightFormat.parse(text) == expected
    assert expected.folder == folder


@pytest.mark.parametrize("text", ["int4/", "int4/many", "int4/64/plain/more"])
def test_a_word_that_is_no_format_is_refused(text: str) -> None:
    with pytest.raises(NotPossibleHere, match=f"no format {text}"):
        WeightFormat.parse(text)


def test_formats_are_built_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--checkpoint", str(golden.CHECKPOINT), "--output", str(tmp_path)]
    assert build_engines.main([*command, "--compare", "fp32", "--compare", "int4/32/plain"]) == 0
    table = capsys.readouterr().out
    manifests = {folder.name: Bundle(folder).manifest for folder in tmp_path.iterdir()}
    assert set(manifests) == {"fp32", "int4-32-plain"}
    assert all(name in table for name in manifests)
    assert (manifests["fp32"].rounding, manifests["int4-32-plain"].rounding) == ("search", "plain")
    near = {name: Nearness.of(manifest) for name, manifest in manifests.items()}
    exact, rounded = near["fp32"], near["int4-32-plain"]
    assert exact and rounded
    assert exact.agreed == exact.written == 32 and exact.same == 1
    assert exact.kl + exact.kl_margin < 1e-6 < rounded.kl
    assert exact.positions == rounded.positions > 64


def test_two_formats_that_are_one_are_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--checkpoint", str(golden.CHECKPOINT), "--output", str(tmp_path / "new")]
    for formats, sentence in (
        (["int4", "int4/128"], "are the same"),
        (["int3"], "no precision int3"),
        (["int4/64/up"], "no rounding up"),
    ):
        assert build_engines.main([*command, "--compare", *formats]) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_was_built_before_roundings_were_named_is_plain(golden_bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((golden_bundle / MANIFEST).read_text())
    del manifest["rounding"]
    for file in golden_bundle.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert Bundle(tmp_path).manifest.rounding == "plain"
