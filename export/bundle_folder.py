"""A bundle being written: a hidden sibling folder that is renamed into place when it is whole, or removed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.bundle import MANIFEST, FileSpec, Manifest, describe_file, write_manifest
from echovlm_edge.runtime.errors import NotPossibleHere

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file-size limit is reached",
}


@dataclass(frozen=True)
class BundleFolder:
    """The folder that is being written."""

    path: Path

    def write_text(self, name: str, text: str) -> None:
        """Write one text file."""
        (self.path / name).write_text(text, encoding="utf-8")

    def describe(self, name: str) -> FileSpec:
        """Size and hash of a file that has been written."""
        return describe_file(self.path, name)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write bundle.json."""
        write_manifest(self.path, manifest)


@contextlib.contextmanager
def bundle_folder(output: Path, needed: int) -> Iterator[BundleFolder]:
    """A new folder beside `output`, which takes its place when the block ends well and vanishes when it does not.

    Args:
        output: where the bundle shall be; an older bundle there is replaced, anything else is left alone.
        needed: bytes that will be written.

    Raises:
        NotPossibleHere: `output` is something else than a bundle, cannot be written, or the disk is full.
    """
    output = output.absolute()
    if output.exists() and not (output / MANIFEST).is_file() and not (output.is_dir() and not any(output.iterdir())):
        raise NotPossibleHere(f"{output} exists and is no bundle: give another --output, or remove it yourself.")
    partial = output.with_name(f".{output.name}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
        partial.mkdir()
        free = shutil.disk_usage(partial).free
        if free < needed:
            raise NotPossibleHere(
                f"The bundle needs {needed / 1e9:.1f} GB and {output.parent} has {free / 1e9:.1f} GB free: make room or give "
                "another --output."
            )
        yield BundleFolder(partial)
        _put_in_place(partial, output)
    except OSError as error:
        reason = _FULL.get(error.errno or 0, error.strerror or str(error))
        raise NotPossibleHere(f"The bundle {output} could not be written: {reason}; nothing was left behind.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, output: Path) -> None:
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    older = output.with_name(f".{output.name}.replaced")
    shutil.rmtree(older, ignore_errors=True)
    if output.exists():
        output.rename(older)
    partial.rename(output)
    _sync(output.parent)
    shutil.rmtree(older, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
