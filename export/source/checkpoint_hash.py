"""Hash a checkpoint's config and weights, in a thread of its own while the build traces and writes.

The hash is what `sha256sum config.json model*.safetensors | sha256sum` prints in the checkpoint's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

# Fits a processor's cache, and is so large that waiting for Python's lock, which tracing holds, costs little.
BUFFER = 4 << 20


@contextlib.contextmanager
def hashing(checkpoint: Checkpoint) -> Iterator[tuple[Checkpoint, Future[str]]]:
    """Hash a checkpoint while the block runs; yields the checkpoint and a future of the 64 hexadecimal digits.

    Hashing that is unfinished at the block's end is stopped. The future's result raises NotPossibleHere where a file cannot be read.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        try:
            yield checkpoint, pool.submit(_sha256, checkpoint, stopped)
        finally:
            stopped.set()


def _sha256(checkpoint: Checkpoint, stopped: threading.Event) -> str:
    listing = [f"{_file_sha256(checkpoint.path / name, stopped)}  {name}\n" for name in checkpoint.files()]
    return hashlib.sha256("".join(listing).encode()).hexdigest()


def _file_sha256(path: Path, stopped: threading.Event) -> str:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(BUFFER))
    try:
        with path.open("rb", buffering=0) as file:
            while not stopped.is_set() and (count := file.readinto(buffer)):
                digest.update(buffer[:count])
    except OSError as error:
        raise NotPossibleHere(
            f"The checkpoint's file {path} cannot be read ({error.strerror}): copy it again."
        ) from None
    return digest.hexdigest()
