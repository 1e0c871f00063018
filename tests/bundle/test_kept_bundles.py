"""Bundles that earlier versions built are read, and write what they wrote: one is kept of each stage of every format that is still read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echovlm_edge.runtime.bundle.golden_tokens import GoldenSample, read_samples
from echovlm_edge.runtime.bundle.manifest import FORMAT, MANIFEST, Bundle, write_manifest
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.golden_check import check_golden_tokens
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support.changed_bundles import changed
from tests.support.kept_bundles import KEPT

# The oldest first; the last one is as today's version writes it.
BUNDLES = ("1-before-attention", "1-golden-tokens")
KEEP = "python -m tests.support.kept_bundles {name}, then add the name to BUNDLES here; those that are there stay"


def written_then(bundle: Path) -> tuple[GoldenSample, ...]:
    """What a bundle wrote when it was kept: its own golden tokens, or those beside one that has none."""
    return read_samples(KEPT / f"{bundle.name}.tokens.json")


@pytest.mark.parametrize("name", BUNDLES)
def test_a_kept_bundle_writes_its_tokens(name: str) -> None:
    engine = ReportEngine.open(KEPT / name, threads=1, verify=True, options=EngineOptions(1, 0, 0))
    try:
        engine.golden_tokens = engine.golden_tokens or written_then(KEPT / name)
        checked = check_golden_tokens(engine)
        assert checked.tokens == checked.of > 3
    finally:
        engine.close()


def test_every_kept_bundle_is_tested() -> None:
    assert {path.name for path in KEPT.iterdir() if path.is_dir()} == set(BUNDLES)


def test_todays_bundle_is_kept(tmp_path: Path) -> None:
    """An entry that is added to bundle.json needs a default, for the bundles that exist, and another kept bundle."""
    newest = KEPT / BUNDLES[-1]
    write_manifest(tmp_path, Bundle(newest).manifest)
    kept, today = (json.loads((folder / MANIFEST).read_text()) for folder in (newest, tmp_path))
    assert kept == today, (
        f"bundle.json has changed: keep a bundle of today's. {KEEP.format(name=f'{FORMAT}-WHAT-IS-NEW')}."
    )
    assert kept["format"] == FORMAT, (
        f"Format {FORMAT} is new: keep a bundle of it. {KEEP.format(name=f'{FORMAT}-first')}. Say in docs/compatibility.md which "
        "formats are read, and remove the kept bundles of those that are not."
    )


def test_a_newer_format_says_what_to_update(tmp_path: Path) -> None:
    newer = changed(KEPT / BUNDLES[-1], tmp_path / "newer", format=FORMAT + 1)
    with pytest.raises(
        NotPossibleHere, match=rf"has format {FORMAT + 1}, newer than {FORMAT}, .*: update echovlm-edge"
    ):
        Bundle(newer)
