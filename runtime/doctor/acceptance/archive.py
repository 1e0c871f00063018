"""The one file that is sent back: JSON, profiles, the page, logs, their hashes, and the hashes' signature."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from echovlm_edge.runtime.bundle.signature import SIGNATURE_SUFFIX, SecretKey, sign
from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.doctor.acceptance.privacy import Redaction
from echovlm_edge.runtime.doctor.acceptance.schema import FILE, Acceptance, StepResult
from echovlm_edge.runtime.doctor.acceptance.setting import LOGS, STEPS
from echovlm_edge.runtime.doctor.acceptance.steps import MODE_SEPARATOR
from echovlm_edge.runtime.profiling.schema import IN_ARCHIVE, Machine, Profile, dump
from echovlm_edge.runtime.resources.atomic_file import write_whole

RESULT, PAGE, LIMITS, SUMS = "acceptance.json", "acceptance.html", "limits.toml", "SHA256SUMS"


def write_archive(
    folder: Path, accepted: Acceptance, page: str, limits: str, redaction: Redaction, key: SecretKey | None
) -> Path:
    """Write the archive, and the page next to it for whoever reads it here; returns the archive.

    Args:
        folder: for both; the logs of the steps in it go into the archive.
        accepted: the result.
        page: HTML.
        limits: the text of the file of limits.
        redaction: what logs are written without.
        key: signs the hashes; None leaves them unsigned.
    """
    files = {RESULT: json.dumps(asdict(accepted), indent=1), PAGE: page, LIMITS: limits}
    files |= {name: json.dumps(dump(profile), indent=1) for name, profile in profiles(accepted.steps).items()}
    for log in sorted((folder / STEPS / LOGS).glob("*.log")):
        files[f"{LOGS}/{log.name}"] = redaction.text(log.read_text(encoding="utf-8", errors="replace"))
    contents = {name: text.encode() for name, text in files.items()}
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()).encode()
    contents[SUMS] = sums
    if key:
        contents[SUMS + SIGNATURE_SUFFIX] = sign(sums, f"file:{SUMS}", key).encode()
    path = folder / f"acceptance-{slug(accepted.machine)}-{re.sub(r'[^0-9T]', '', accepted.created[:16])}.zip"
    write_whole(path, _zipped(contents), "The archive")
    write_whole(folder / PAGE, contents[PAGE], "The page")
    return path


def read_archive(path: Path) -> Acceptance:
    """Read an archive's result, after its files' hashes.

    Raises:
        InvalidInput: it cannot be read, or a file has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for line in archive.read(SUMS).decode().splitlines():
                digest, _, name = line.partition("  ")
                if hashlib.sha256(archive.read(name)).hexdigest() != digest:
                    raise InvalidInput(f"{path} has changed since it was written ({name}): ask for another copy.")
            return FILE.parse(archive.read(RESULT), path)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise InvalidInput(f"{path} is no archive of echovlm-accept ({type(error).__name__}): copy it again.") from None


def profiles(steps: Iterable[StepResult]) -> Mapping[str, Profile]:
    """Return the measured profiles by their files' names: one, or one for each power mode."""
    found: dict[str, Profile] = {}
    for step in steps:
        if profile := step.outcome.profile:
            mode = step.name.rpartition(MODE_SEPARATOR)[0]
            name = f"profile-{mode}.json" if mode else IN_ARCHIVE
            before = found[name].workloads if name in found else ()
            found[name] = replace(profile, workloads=(*before, *profile.workloads))
    if found and IN_ARCHIVE not in found:  # so that every archive can be compared
        found[IN_ARCHIVE] = next(iter(found.values()))
    return found


def slug(machine: Machine) -> str:
    """Name a kind of machine in a file's name: its device, its GPU, or its CPU."""
    name = machine.device or machine.gpu or machine.cpu
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60]


def _zipped(contents: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()
