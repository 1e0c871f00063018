"""Decode image files in sandboxed processes, so that a hostile or broken file costs one refusal."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, Stopped, Unavailable
from echovlm_edge.runtime.contracts.origins import DIGEST_BYTES, PROCESS_KEY, Origin
from echovlm_edge.runtime.contracts.request import Frame, ImageInput, Resolution
from echovlm_edge.runtime.imaging.decoder import NOBODY, Asker, as_measured
from echovlm_edge.runtime.imaging.image_file import ImageLimits, Measured
from echovlm_edge.runtime.imaging.preprocess import most_pixels
from echovlm_edge.runtime.imaging.sandbox.process import (
    Crashed,
    DecodeProcess,
    Lost,
    NoMemory,
    Request,
    TooSlow,
    Unresponsive,
    Unwanted,
)
from echovlm_edge.runtime.imaging.sandbox.sources import believed, one_line
from echovlm_edge.runtime.imaging.sandbox.worker import DECODE, MEASURE, asked_about, unpacked
from echovlm_edge.runtime.resources.fair_queue import FairQueue

HEADER_BYTES = 1 << 16  # of an answer, besides its pixels
SENTENCE_CHARACTERS = 1000
POLL_SECONDS = 0.05  # between two checks whether a waiting caller is still there
RESTART_SECONDS = 1.0  # between two tries to start a process

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SandboxLimits:
    """Limits of decoding.

    Attributes:
        processes: how many decode at once; one more is kept ready.
        memory_bytes: address space of each process.
        seconds: time for one file; after that its process is killed.
        user: the user id of the processes where root starts them.
    """

    processes: int = 2
    memory_bytes: int = 3 << 30
    seconds: float = 20.0
    user: int = 65534


@dataclass(eq=False)
class _Turn:
    """A client's call that waits for a process; `ended` is set once there is one, or a reason why there is none."""

    client: str
    ended: threading.Event = field(default_factory=threading.Event)
    process: DecodeProcess | None = None
    failure: str = ""


class DecodeSandbox:
    """An `ImageDecoder` of several processes, which end on `close` and whenever the server ends.

    Calls get a process by priority, then by how little their client has been served, and leave the queue once nobody wants them
    any more. One client's files never take all processes, where there are several. One thread starts the processes, and replaces
    each that is lost.
    """

    def __init__(self, limits: SandboxLimits = SandboxLimits(), images: ImageLimits | None = None) -> None:
        """Start the processes in the background; `ready` waits for the first one."""
        self._limits, self._images = limits, images or ImageLimits()
        self._state = threading.Condition()
        self._idle: deque[DecodeProcess] = deque()
        self._busy = 0
        self._held: Counter[str] = Counter()  # processes by client
        self._waiting: FairQueue[_Turn] = FairQueue()
        self._failure = ""  # why the last process could not be started
        self._told = self._closed = False
        threading.Thread(target=self._keep_started, name="decode-starter", daemon=True).start()

    def ready(self) -> None:
        """Wait for the first process.

        Raises:
            NotPossibleHere: the process does not start.
        """
        with self._state:
            self._state.wait_for(lambda: self._idle or self._busy or self._failure)
            if not (self._idle or self._busy):
                raise NotPossibleHere(f"The process that decodes images does not start: {self._failure}")

    def pids(self) -> list[int]:
        """List the process ids of the idle processes."""
        with self._state:
            return [process.pid for process in self._idle]

    def measure(self, image: ImageInput, resolution: Resolution, asker: Asker = NOBODY) -> Measured:
        """Read sizes and origin, as `ImageDecoder.measure` does."""
        said, _ = self._ask(MEASURE, image, resolution, HEADER_BYTES, asker, {"key": PROCESS_KEY.hex()})
        with _nothing_believed(image):
            sizes = tuple((_side(height, resolution), _side(width, resolution)) for height, width in said["sizes"])
            shortened = len(image.original.numbers) if image.original else 0
            asked_for = shortened or len(image.selection.indices) or image.selection.evenly_spaced or 1
            if not 1 <= len(sizes) <= min(asked_for, self._images.max_frames):
                raise ValueError("so many frames were not asked for")
            if any(height * width > most_pixels(resolution) for height, width in sizes):
                raise ValueError("no frame is so large")
            return Measured(resolution, sizes, Origin(_digest(said["patient"]), _digest(said["study"])))

    def decode(self, image: ImageInput, measured: Measured, asker: Asker = NOBODY) -> list[Frame]:
        """Decode a file, as `ImageDecoder.decode` does."""
        size = sum(3 * height * width for height, width in measured.sizes)
        said, pixels = self._ask(DECODE, image, measured.resolution, HEADER_BYTES + size, asker, {})
        with _nothing_believed(image):
            frames, start = list[Frame](), 0
            for height, width, name, source in said["frames"]:
                values = np.frombuffer(pixels, np.uint8, 3 * height * width, start).reshape(height, width, 3)
                values.flags.writeable = False
                frames.append(Frame(values, str(name)[:SENTENCE_CHARACTERS], source=believed(source)))
                start += values.nbytes
        return as_measured(image, measured, frames)

    def close(self) -> None:
        """End the processes; a busy one ends after its file."""
        with self._state:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
            self._fail_waiting()
            self._state.notify_all()
        for process in idle:
            process.end()

    def _ask(
        self, kind: int, image: ImageInput, resolution: Resolution, most_bytes: int, asker: Asker, more: dict[str, Any]
    ) -> tuple[Any, memoryview]:
        """Ask a process about a file; returns its JSON answer and pixels. Where the process is lost, another one is asked."""
        if len(image.data) > self._images.max_bytes:  # before any of its bytes are read
            raise InvalidInput(
                f"{image.name} has {len(image.data):,} bytes, more than {self._images.max_bytes:,}: send a smaller file."
            )
        header = {**asked_about(image, resolution), **more}
        request = Request(kind, header, image.data, most_bytes, self._limits.seconds, asker.stopped)
        try:
            try:
                answer = self._answer(request, asker)
            except Unresponsive:
                raise
            except Lost:
                answer = self._answer(request, asker)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise Unavailable(
                f"{image.name} cannot be given to a process that decodes it ({reason}): try again."
            ) from None
        except Lost:
            raise Unavailable(f"The process that decoded {image.name} was lost: try again.") from None
        except Unwanted:
            raise Stopped from None
        except TooSlow:
            raise InvalidInput(
                f"{image.name} takes more than {self._limits.seconds:g} s to decode: send a smaller one."
            ) from None
        except NoMemory:
            raise InvalidInput(f"{image.name} takes more memory than decoding may use: send a smaller one.") from None
        except Crashed:
            raise InvalidInput(f"{image.name} cannot be decoded: decoding it crashed. It may be damaged.") from None
        with _nothing_believed(image):
            said, pixels = unpacked(answer)
            if "refused" in said:
                raise InvalidInput(one_line(said["refused"], SENTENCE_CHARACTERS))
            if "not_possible" in said:
                raise NotPossibleHere(one_line(said["not_possible"], SENTENCE_CHARACTERS))
            return said, pixels

    def _answer(self, request: Request, asker: Asker) -> memoryview:
        with self._process(asker) as process:
            return process.ask(request)

    @contextmanager
    def _process(self, asker: Asker) -> Iterator[DecodeProcess]:
        """Wait for a process and hold it for as long as the context lasts.

        Raises:
            Unwanted: the caller is gone.
            Unavailable: no process can be started.
        """
        turn = _Turn(asker.client)
        started: float | None = None
        try:
            with self._state:
                self._waiting.push(turn, asker.client, asker.priority)
                self._hand_out()
            while not turn.ended.wait(POLL_SECONDS):
                if asker.stopped():
                    raise Unwanted
            started = time.monotonic()
            if turn.process is None:
                raise Unavailable(f"No process that decodes images can be started ({turn.failure}): try again.")
            yield turn.process
        finally:
            self._give_back(turn, asker, 0.0 if started is None else time.monotonic() - started)

    def _hand_out(self) -> None:
        """Give idle processes to the calls whose turn it is; the caller holds the lock."""
        while self._waiting and self._busy < self._limits.processes and self._idle:
            process = self._idle.popleft()
            if not process.usable():  # killed from outside while it was idle
                process.end()
                self._state.notify_all()
                continue
            turn = self._waiting.pop(without=self._clients_with_enough())
            if turn is None:
                self._idle.appendleft(process)
                break
            turn.process = process
            self._busy += 1
            self._held[turn.client] += 1
            turn.ended.set()
        if self._closed or (self._failure and not self._idle and not self._busy):
            self._fail_waiting()

    def _clients_with_enough(self) -> list[str]:
        """List the clients whose files have all processes but one: the last is for others, so that slow files do not block them."""
        most = max(1, self._limits.processes - 1)
        return [client for client, held in self._held.items() if held >= most]

    def _fail_waiting(self) -> None:
        while turn := self._waiting.pop():
            turn.failure = "the server is shutting down" if self._closed else self._failure
            turn.ended.set()

    def _give_back(self, turn: _Turn, asker: Asker, seconds: float) -> None:
        with self._state:
            self._waiting.remove(turn, asker.client, asker.priority)
            if (process := turn.process) is not None:
                self._busy -= 1
                self._held[turn.client] -= 1
                self._held += Counter()  # drops clients without processes
                self._waiting.charge(asker.client, seconds)
                if process.usable() and not self._closed:
                    self._idle.append(process)
                else:
                    process.end()
            self._hand_out()
            self._state.notify_all()

    def _keep_started(self) -> None:
        """Start processes whenever there are too few; runs in one thread, which lives as long as the server."""
        while True:
            with self._state:
                self._state.wait_for(lambda: self._closed or len(self._idle) + self._busy <= self._limits.processes)
                if self._closed:
                    return
            self._take_in(*self._start())

    def _take_in(self, process: DecodeProcess | None, failure: str) -> None:
        with self._state:
            if process and self._closed:
                process.end()
            elif process:
                self._idle.append(process)
            if failure and failure != self._failure:
                _log.error("no process that decodes images can be started: %s", failure)
            self._failure = failure
            self._hand_out()
            self._state.notify_all()
            if failure:
                self._state.wait_for(lambda: self._closed, RESTART_SECONDS)

    def _start(self) -> tuple[DecodeProcess | None, str]:
        try:
            process = DecodeProcess(self._limits.memory_bytes, self._limits.user, self._images)
        except OSError as error:
            return None, error.strerror or type(error).__name__
        except Lost:
            return None, "it ends at once; is its memory limit too low?"
        except Exception as error:
            return None, type(error).__name__
        if not self._told:
            self._told = True
            _log.info(process.confinement.sentence())
            if process.undecodable:
                _log.warning("this server cannot decode %s", ", ".join(process.undecodable))
        return process, ""


@contextmanager
def _nothing_believed(image: ImageInput) -> Iterator[None]:
    """Report an invalid answer as damage of the file: a process that a file took over may write anything."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidInput(f"{image.name} cannot be decoded: decoding it gave nonsense. It may be damaged.") from None


def _side(pixels: object, resolution: Resolution) -> int:
    if not isinstance(pixels, int) or pixels < 1 or pixels % resolution.unit:
        raise ValueError("no side of a fitted frame is so long")
    return pixels


def _digest(text: object) -> bytes:
    digest = bytes.fromhex(str(text))
    if len(digest) not in (0, DIGEST_BYTES):
        raise ValueError("no digest is so long")
    return digest
