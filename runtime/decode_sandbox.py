"""Decodes image files in processes that cannot do much else, so that a hostile or broken file costs one refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from queue import Empty, LifoQueue
from typing import Any, BinaryIO

import numpy as np

from echovlm_edge.runtime.decode_worker import LENGTHS, read_exactly, write_message
from echovlm_edge.runtime.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.image import ImageLimits
from echovlm_edge.runtime.request import Frame, ImageInput

MAX_HEADER_BYTES = 1 << 20
START_SECONDS = 60.0
ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class SandboxLimits:
    """What decoding one file may take.

    Attributes:
        processes: that decode at once.
        memory_bytes: address space of each.
        seconds: for one file; then the process is killed and another one started.
    """

    processes: int = 2
    memory_bytes: int = 4 << 30
    seconds: float = 20.0


class DecodeSandbox:
    """Processes that decode; call it like `decode_image`. Closing ends them, and they end when the server does, however it does."""

    def __init__(self, limits: SandboxLimits = SandboxLimits(), images: ImageLimits | None = None) -> None:
        """Start the first process.

        Raises:
            NotPossibleHere: it does not start.
        """
        self._limits, self._images = limits, images or ImageLimits()
        self._places = threading.BoundedSemaphore(limits.processes)
        self._idle: LifoQueue[_Worker] = LifoQueue()
        self._idle.put(_Worker(limits, self._images))

    def __call__(self, image: ImageInput) -> list[Frame]:
        """The frames of one file; see `decode_image`.

        Raises:
            InvalidInput: what `decode_image` refuses, and a file that takes too long or too much memory, or ends the process.
        """
        if len(image.data) > self._images.max_bytes:  # before it is copied to the process
            raise InvalidInput(
                f"{image.name} has {len(image.data):,} bytes, more than {self._images.max_bytes:,}: send a smaller file."
            )
        with self._places, self._worker() as worker:
            return worker.decode(image)

    def close(self) -> None:
        """End the processes that are idle."""
        while True:
            try:
                self._idle.get_nowait().kill()
            except Empty:
                return

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        try:
            worker = self._idle.get_nowait()
        except Empty:
            worker = _Worker(self._limits, self._images)
        if not worker.alive():  # killed from outside while it was idle
            worker.kill()
            worker = _Worker(self._limits, self._images)
        try:
            yield worker
        finally:
            if worker.alive():
                self._idle.put(worker)
            else:
                worker.kill()


class _Worker:
    """One process."""

    def __init__(self, limits: SandboxLimits, images: ImageLimits) -> None:
        self._limits, self._images = limits, images
        command = [sys.executable, "-I", "-m", "echovlm_edge.runtime.decode_worker", str(limits.memory_bytes)]
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(images))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            cwd="/",
        )
        assert self._process.stdin and self._process.stdout
        self._requests: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._answers: BinaryIO = self._process.stdout  # type: ignore[assignment]
        try:
            with self._time(START_SECONDS):
                self._answer()
        except (EOFError, OSError):
            raise NotPossibleHere(
                "The process that decodes images does not start: is its memory limit too low?"
            ) from None

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # what was still to be flushed
                pipe.close()

    def decode(self, image: ImageInput) -> list[Frame]:
        asked = {
            "media_type": image.media_type,
            "name": image.name,
            "indices": image.selection.indices,
            "evenly_spaced": image.selection.evenly_spaced,
            "crop_to_regions": image.crop_to_regions,
        }
        try:
            with self._time(self._limits.seconds) as late:
                write_message(self._requests, asked, image.data)
                header, pixels = self._answer()
                frames = self._frames(header.get("frames", ()), pixels)
        except (EOFError, OSError, ValueError, TypeError):
            self.kill()
            if late.is_set():
                raise InvalidInput(
                    f"{image.name} takes more than {self._limits.seconds:g} s to decode: send a smaller one."
                ) from None
            raise InvalidInput(f"{image.name} cannot be decoded: decoding it crashed. It may be damaged.") from None
        if "refused" in header:
            raise InvalidInput(str(header["refused"]))
        return frames

    def _answer(self) -> tuple[dict[str, Any], bytes]:
        """What the process says; one that was taken over could say anything, so that nothing in it is trusted."""
        header_length, size = LENGTHS.unpack(read_exactly(self._answers, LENGTHS.size))
        if header_length > MAX_HEADER_BYTES or size > 3 * self._images.max_pixels * self._images.max_frames:
            raise EOFError
        header = json.loads(read_exactly(self._answers, header_length))
        return header, read_exactly(self._answers, size)

    def _frames(self, described: Iterable[tuple[int, int, str]], pixels: bytes) -> list[Frame]:
        frames, start = [], 0
        for height, width, name in described:
            values = np.frombuffer(pixels, np.uint8, 3 * height * width, start).reshape(height, width, 3)
            frames.append(Frame(values, str(name)))
            start += values.nbytes
        return frames

    @contextmanager
    def _time(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the process after so long: then what reads from it or writes to it fails. The event says that this was why."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            yield late
        finally:
            timer.cancel()
