"""Bundles that differ from a built one as a test needs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.bundle.golden_tokens import GOLDEN_TOKENS
from echovlm_edge.runtime.bundle.manifest import MANIFEST, describe_file


def changed(bundle: Path, copy: Path, **entries: Any) -> Path:
    """A copy of a bundle with other entries in bundle.json."""
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(manifest | entries))
    return copy


def numbered(bundle: Path, copy: Path, number: int) -> Path:
    """A copy of a bundle with an id of its own."""
    return changed(bundle, copy, bundle_id=f"{number:016x}")


def with_a_wrong_golden_token(bundle: Path, copy: Path, number: int) -> Path:
    """A numbered copy of a bundle whose build saw another first token, as though its weights had changed since."""
    numbered(bundle, copy, number)
    samples = json.loads((copy / GOLDEN_TOKENS).read_text())
    samples[-1]["tokens"][0] += 1
    (copy / GOLDEN_TOKENS).write_text(json.dumps(samples))
    manifest = json.loads((copy / MANIFEST).read_text())
    described = describe_file(copy, GOLDEN_TOKENS)
    files = [file for file in manifest["files"] if file["name"] != GOLDEN_TOKENS]
    (copy / MANIFEST).write_text(json.dumps(manifest | {"files": [*files, vars(described)]}))
    return copy


def without_golden_tokens(bundle: Path, copy: Path) -> Path:
    """A copy of a bundle as versions built it that knew no golden tokens."""
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    return changed(bundle, copy, files=[file for file in files if file["name"] != GOLDEN_TOKENS])
