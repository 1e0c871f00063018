"""A bundle being written: a hidden sibling folder that is renamed into place when it is complete, removed when the build fails,
and resumed after the build was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.export.bundle.journal import Journal
from echovlm_edge.runtime.bundle.manifest import MANIFEST, FileSpec, Manifest, describe_file, write_manifest
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.durable import sync
from echovlm_edge.runtime.resources.exchange import exchange
from echovlm_edge.runtime.resources.resolved import resolved

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file-size limit is reached",
}


@dataclass(frozen=True)
class BundleFolder:
    """The folder that is being written, and the journal of its contents."""

    path: Path
    journal: Journal

    def write_text(self, name: str, text: str) -> None:
        """Write one text file."""
        (self.path / name).write_text(text, encoding="utf-8")

    def describe(self, name: str) -> FileSpec:
        """Return the size and hash of a file that has been written."""
        return describe_file(self.path, name)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write bundle.json."""
        write_manifest(self.path, manifest)


def check_output(output: Path, replace: bool) -> None:
    """Refuse an output path that a new bundle cannot take.

    Args:
        output: the path of the new bundle.
        replace: whether it may replace a bundle that exists there.

    Raises:
        NotPossibleHere: a bundle exists there and `replace` is false, something else exists there, or its parent is not a folder.
    """
    output = _located(output)
    if (output / MANIFEST).is_file():
        if not replace:
            raise NotPossibleHere(
                f"There is a bundle at {output} already{_described(output)}: give --replace to replace it, or another --output."
            )
    elif os.path.lexists(output) and not (output.is_dir() and not any(output.iterdir())):
        raise NotPossibleHere(f"{output} exists and is no bundle: give another --output, or remove it yourself.")
    around = next(folder for folder in output.parents if os.path.lexists(folder))
    if not around.is_dir():
        raise NotPossibleHere(
            f"{around} is no folder, so that nothing can be written to {output}: give another --output."
        )


def _located(output: Path) -> Path:
    """Make the path absolute, and its last part a name and not `.` or `..`; a link there is what is replaced, not what it leads to."""
    return resolved(output) if output.name in ("", "..") else resolved(output.parent) / output.name


def _described(output: Path) -> str:
    """Describe an existing bundle, as far as its bundle.json can be read."""
    try:
        manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
        return f" ({manifest['source']['name']}, {manifest['precision']} for {manifest['target']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextlib.contextmanager
def bundle_folder(output: Path, needed: int, identity: str, *, replace: bool) -> Iterator[BundleFolder]:
    """Make a folder next to `output`, which is renamed to `output` when the block succeeds and removed when it fails.

    It stays when the process is killed or interrupted: the next build of the same identity resumes it.

    Args:
        output: the path of the bundle.
        needed: bytes that will be written.
        identity: identifies everything that decides what is written.
        replace: whether an existing bundle is replaced; anything else is left alone.

    Raises:
        NotPossibleHere: `output` is not free (`check_output`), cannot be written, another build is writing it, or the disk is
            full.
    """
    output = _located(output)
    check_output(output, replace)
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial, output):
            try:
                journal = Journal(partial, identity)
                if not journal.resumed:
                    _empty(partial)
                _check_room(partial, needed)
                yield BundleFolder(partial, journal)
                journal.remove()
                _put_in_place(partial, output)
            except KeyboardInterrupt:
                raise
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    except OSError as error:
        reason = _FULL.get(error.errno or 0, error.strerror or str(error))
        raise NotPossibleHere(f"The bundle {output} could not be written: {reason}; nothing was left behind.") from None


@contextlib.contextmanager
def locked(partial: Path, output: Path) -> Iterator[None]:
    """Hold a lock on the folder `partial` of the build that writes `output`.

    Raises:
        NotPossibleHere: another process holds it.
    """
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotPossibleHere(f"Another build is writing {output}: wait for it, or stop it.") from None
        yield
    finally:
        os.close(descriptor)


def _check_room(partial: Path, needed: int) -> None:
    missing = needed - sum(file.stat().st_blocks * 512 for file in partial.iterdir())
    free = shutil.disk_usage(partial).free
    if free < missing:
        raise NotPossibleHere(
            f"The bundle needs {missing / 1e9:.1f} GB more and {partial.parent} has {free / 1e9:.1f} GB free: make room or "
            "give another --output."
        )


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _put_in_place(partial: Path, output: Path) -> None:
    for file in partial.iterdir():
        sync(file)
    sync(partial)
    older = output.with_name(f".{output.name}.replaced")
    _remove(older)
    if exchange(partial, output):
        partial.rename(older)  # in one step, so that the next build does not resume the old bundle
    else:  # there is no older one, or the file system cannot exchange: for a moment there is none
        if os.path.lexists(output):
            output.rename(older)
        partial.rename(output)
    sync(output.parent)
    _remove(older)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
