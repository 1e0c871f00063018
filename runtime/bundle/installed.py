"""A folder of bundles, of which the link `current` names the one that is served, and `previous` the one before it.

    /var/lib/echovlm/bundles/current   -> echovlm-5c1d09ab
                             previous  -> echovlm-e7d3ec58
                             echovlm-5c1d09ab/bundle.json …
                             echovlm-e7d3ec58/bundle.json …
                             loads/…                        what the server found out (loads.py)

A link is replaced by renaming another one over it, and a bundle is copied under a hidden name: whenever a change is interrupted,
`current` is one of the two bundles, whole, and doing it again completes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from echovlm_edge.runtime.bundle.loads import Loads
from echovlm_edge.runtime.bundle.manifest import CURRENT, MANIFEST, Bundle
from echovlm_edge.runtime.bundle.signature import SIGNATURE_SUFFIX, PublicKey
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.printable import printable
from echovlm_edge.runtime.resources.durable import sync
from echovlm_edge.runtime.resources.exchange import exchange
from echovlm_edge.runtime.resources.resolved import resolved

PREVIOUS = "previous"
SIGNATURE = MANIFEST + SIGNATURE_SUFFIX


def linked(folder: Path, link: str) -> Path | None:
    """Return the bundle that a link of the folder leads to; None where there is no such link, or it leads nowhere."""
    with suppress(OSError, RuntimeError):
        return (folder / link).resolve(strict=True)
    return None


def install(source: Path, folder: Path, signers: Sequence[PublicKey] = ()) -> Path:
    """Copy a bundle into the folder, hash the copy, and make it the current one; returns the copy.

    A bundle that lies in the folder already is not copied. What was current becomes the previous one, unless a server refused it or
    crashed on it: then the previous one stays. The folder is made if it is missing.

    Raises:
        NotPossibleHere: the bundle is damaged, unfinished or not signed by one of the `signers`, its folder's name cannot be printed,
            it is the folder of bundles or lies above it, or the folder cannot be written.
    """
    source, folder = resolved(source), resolved(folder)
    if folder.is_relative_to(source):
        raise NotPossibleHere(
            f"{printable(str(source))} is or holds the folder of bundles {printable(str(folder))}: name one bundle."
        )
    bundle = Bundle(source)
    if not bundle.path.name.isprintable():
        raise NotPossibleHere(
            f"The name of the bundle's folder, {printable(bundle.path.name)}, has characters that cannot be printed: rename the folder."
        )
    with _changing(folder):
        if bundle.path.parent == folder:
            copy = Bundle(bundle.path, verify=True, signers=signers).path
        else:
            copy = folder / _name_of(bundle)
            _copy(bundle, copy, signers)
        before, loads = linked(folder, CURRENT), Loads(folder)
        if before and before != copy and loads.is_good(before.name):
            _link(folder, PREVIOUS, before.name)
        _link(folder, CURRENT, copy.name)
        loads.clear(copy.name)
    return copy


def roll_back(folder: Path) -> Path:
    """Make the previous bundle the current one, and the reverse; returns the new current one.

    Raises:
        NotPossibleHere: there is no other one to return to, it is damaged, or the folder cannot be written.
    """
    with _changing(folder):
        before, after = linked(folder, CURRENT), linked(folder, PREVIOUS)
        if after is None or after == before:
            raise NotPossibleHere(
                f"There is no previous bundle in {folder} to return to: install one with echovlm-bundle install."
            )
        Bundle(after, verify=True)
        if before and exchange(folder / CURRENT, folder / PREVIOUS):
            sync(folder)
        else:  # there is no current one, or the file system cannot exchange: killed in between, both links lead to the one returned to
            _link(folder, CURRENT, after.name)
            if before:
                _link(folder, PREVIOUS, before.name)
        Loads(folder).clear(after.name)
    return after


def _name_of(bundle: Bundle) -> str:
    """Name a copy: as the bundle's folder, and by the hash of its bundle.json, so that no two bundles share a name."""
    name, digest = bundle.path.name, hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()[:8]
    return name if name.endswith(f"-{digest}") else f"{name}-{digest}"


def _copy(bundle: Bundle, copy: Path, signers: Sequence[PublicKey]) -> None:
    partial = copy.with_name(f".{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    needed = sum(file.bytes for file in bundle.manifest.all_files())
    if shutil.disk_usage(copy.parent).free < needed:
        raise NotPossibleHere(
            f"{copy.parent} has no room for the bundle's {needed / 1e9:.1f} GB: delete bundles that no link there leads to."
        )
    names = [MANIFEST, *(file.name for file in bundle.manifest.all_files())]
    names += [SIGNATURE] if (bundle.path / SIGNATURE).exists() else []
    for name in names:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, partial / name)
        (partial / name).chmod(0o644)  # the service's user reads it; the folder around it decides who else does
        sync(partial / name)
    for made in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        made.chmod(0o755)
        sync(made)
    try:
        Bundle(partial, verify=True, signers=signers)
    except NotPossibleHere as damaged:
        shutil.rmtree(partial, ignore_errors=True)
        raise NotPossibleHere(str(damaged).replace(str(partial), str(bundle.path))) from None
    if not copy.exists():
        partial.rename(copy)
    elif exchange(partial, copy):  # the same one, perhaps damaged or with another signature
        shutil.rmtree(partial)
    else:
        raise NotPossibleHere(
            f"{copy} exists and this file system cannot replace it in one step: delete it, and install the bundle again."
        )
    sync(copy.parent)


def _link(folder: Path, link: str, name: str) -> None:
    """Make or replace a link in one step."""
    partial = folder / f".{link}.partial"
    partial.unlink(missing_ok=True)
    partial.symlink_to(name)
    partial.replace(folder / link)
    sync(folder)


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Change the folder, alone."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / MANIFEST).exists():
            raise NotPossibleHere(f"{folder} is a bundle itself: name a folder that holds bundles.")
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        finally:
            os.close(lock)
    except BlockingIOError:
        raise NotPossibleHere(f"Another echovlm-bundle is changing {folder}: wait for it, or stop it.") from None
    except OSError as error:
        raise NotPossibleHere(
            f"{folder} cannot be changed ({error.strerror or type(error).__name__}): what is current there still is."
        ) from None
