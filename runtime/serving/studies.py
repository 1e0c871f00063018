"""Studies: images that are added one by one and prefilled before the request; limited in number, memory and age.

A cart that crashes leaves its studies open. So a client at its limit of studies, or of their memory, can still begin one or add an image:
its least recently used studies are ended to make room. A study is never ended for this if a call is using it, if it was used within
`StudyLimits.replaceable_after_seconds`, or if it belongs to another client.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from echovlm_edge.runtime.contracts.errors import (
    SHUTTING_DOWN,
    Busy,
    InvalidInput,
    NotFound,
    StudyReplaced,
    Unavailable,
    UserError,
)
from echovlm_edge.runtime.contracts.origins import refuse_mixed
from echovlm_edge.runtime.contracts.request import Frame
from echovlm_edge.runtime.serving.access.clients import Client

Prepare = Callable[[Sequence[Frame], str, str, Callable[[], bool]], None]

RETRY_SECONDS = 10.0
MOST_REPLACED = 1024  # studies ended for newer ones whose ids are remembered, so that later calls learn why

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudyLimits:
    """How many studies may be open at once, how much memory their pictures may take, and when an unused one expires.

    Attributes:
        max_studies: of all clients.
        max_bytes: of the pictures of all studies.
        max_frames: of one study.
        expires_after_seconds: without a use.
        replaceable_after_seconds: without a use; after this time a study may be ended to make room for a newer one of its client.
    """

    max_studies: int = 64
    max_bytes: int = 1 << 30
    max_frames: int = 64
    expires_after_seconds: float = 1800.0
    replaceable_after_seconds: float = 60.0


@dataclass(frozen=True)
class OpenStudy:
    """A study in the list of its client; the fields are those of report.proto. Only `Studies.end` accepts `id`."""

    id: str
    age_seconds: float
    unused_seconds: float
    in_use: bool
    images: int
    bytes: int


@dataclass(eq=False)
class _Study:
    client: str
    scope: str
    listed_as: str  # its id in lists, which is no secret
    begun: float
    used: float
    image_tokens: int | None = None  # most of a frame, see `ImageInput`
    calls: int = 0  # in progress
    images: dict[int, tuple[Frame, ...]] = field(default_factory=dict)
    numbers: int = 0
    superseded: threading.Event = field(default_factory=threading.Event)  # ends the preparation that runs

    def frames(self) -> tuple[Frame, ...]:
        return tuple(frame for frames in self.images.values() for frame in frames)

    def bytes(self) -> int:
        return sum(frame.pixels.nbytes for frame in self.frames())


@dataclass(frozen=True)
class Added:
    """An image that was added: its number, and all pictures of the study; the last `own` pictures are the image's."""

    number: int
    frames: tuple[Frame, ...]
    own: int


class Studies:
    """The open studies of all clients. It holds pictures only; what is computed from them is in the engine's caches."""

    def __init__(
        self, limits: StudyLimits, prepare: Prepare, clock: Callable[[], float] = time.monotonic, *, home: str = ""
    ) -> None:
        """Start with no studies.

        Args:
            limits: of all studies together.
            prepare: reads a study's pictures in the background, as `ReportEngine.prepare` does.
            clock: seconds, for the expiry.
            home: the prefix of all ids.
        """
        self.limits = limits
        self._prepare, self._clock, self._home = prepare, clock, home
        self._open: dict[str, _Study] = {}
        self._replaced: dict[
            str, tuple[str, float]
        ] = {}  # by the id of a study that was ended for a newer one: its client, and when
        self._lock = threading.Lock()
        self._background = ThreadPoolExecutor(4, thread_name_prefix="study")
        self._closed = False

    def begin(self, client: Client, image_tokens: int | None = None) -> str:
        """Open a study whose frames are bounded by `image_tokens`; returns its id.

        If the client has as many as it may have, its longest unused one is ended.

        Raises:
            Busy: as many studies are open as there may be, of all clients or of this one.
            Unavailable: the server is shutting down.
        """
        with self._lock:
            self._refuse_when_closed()
            self._forget_old()
            own = sum(study.client == client.name for study in self._open.values())
            excess = own + 1 - self.most(client)
            if excess > 0:
                replaceable = self._replaceable(client)
                if excess > len(replaceable):
                    raise self._too_many(client, own)
                self._replace(replaceable[:excess])
            if len(self._open) >= self.limits.max_studies:
                raise Busy(f"{len(self._open)} studies are open, the maximum: try again later.", RETRY_SECONDS)
            name, now = self._home + secrets.token_urlsafe(18), self._clock()
            listed_as = self._home + secrets.token_urlsafe(9)
            self._open[name] = _Study(client.name, client.scope, listed_as, now, now, image_tokens)
            return name

    def most(self, client: Client) -> int:
        """Return how many studies this client may have open."""
        return client.share(self.limits.max_studies) if client.max_studies is None else client.max_studies

    def listed(self, client: Client) -> tuple[OpenStudy, ...]:
        """List the client's open studies, the one that has been unused for longest first."""
        with self._lock:
            self._forget_old()
            now = self._clock()
            own = [study for study in self._open.values() if study.client == client.name]
            return tuple(
                OpenStudy(
                    study.listed_as,
                    now - study.begun,
                    0.0 if study.calls else now - study.used,
                    study.calls > 0,
                    len(study.images),
                    study.bytes(),
                )
                for study in sorted(own, key=lambda study: (study.calls > 0, study.used))
            )

    @contextmanager
    def use(self, client: Client, name: str) -> Iterator[None]:
        """Keep a study open while a call works on it; the time that it is unused starts at the context's end.

        Raises:
            NotFound: no such study.
        """
        with self._lock:
            study = self._find(client, name)
            study.calls += 1
        try:
            yield
        finally:
            with self._lock:
                study.calls -= 1
                study.used = self._clock()

    def add(
        self,
        client: Client,
        name: str,
        frames: Sequence[Frame],
        check: Callable[[Sequence[Frame]], object],
        allow_mixed_studies: bool = False,
    ) -> Added:
        """Append an image's frames to the study, and start to read them in the background.

        Args:
            client: whose study it is.
            name: the study's id.
            frames: the image's pictures.
            check: raises InvalidInput for a study with these pictures, for example if the context cannot hold them.
            allow_mixed_studies: the image may be of another study of the same patient.

        Raises:
            NotFound: no such study.
            InvalidInput: too many pictures, or another patient's.
            Busy: there is no memory for the image now.
            Unavailable: the server is shutting down.
        """
        with self._lock:
            self._refuse_when_closed()
            study = self._find(client, name)
            together = (*study.frames(), *frames)
            if len(together) > self.limits.max_frames:
                raise InvalidInput(
                    f"The study would have {len(together)} pictures, more than the maximum of {self.limits.max_frames}: "
                    "withdraw one first."
                )
            # Checked again, as other images may have been added while this one was decoded.
            refuse_mixed([(frame.name, frame.origin) for frame in together], allow_mixed_studies)
            check(together)
            size = sum(frame.pixels.nbytes for frame in frames)
            self._make_room(client, study, size)
            study.numbers += 1
            known_as = f"image number {study.numbers} of the study"
            study.images[study.numbers] = tuple(
                replace(frame, name=known_as, image=study.numbers, of_study=True) for frame in frames
            )
            self._prepare_again(study)
            return Added(study.numbers, study.frames(), len(frames))

    def pictures(self, client: Client, name: str) -> tuple[Frame, ...]:
        """Return the study's frames so far; unlike `frames`, this does not end reading in the background.

        Raises:
            NotFound: no such study.
        """
        with self._lock:
            return self._find(client, name).frames()

    def image_tokens(self, client: Client, name: str) -> int | None:
        """Return the bound that the study was begun with; raises NotFound if there is no such study."""
        with self._lock:
            return self._find(client, name).image_tokens

    def withdraw(self, client: Client, name: str, number: int) -> None:
        """Remove an image from the study.

        Raises:
            NotFound: no such study, or no such image in it.
        """
        with self._lock:
            study = self._find(client, name)
            if study.images.pop(number, None) is None:
                raise NotFound(f"The study has no image {number}: it was withdrawn, or never added.")
            self._prepare_again(study)

    def frames(self, client: Client, name: str) -> tuple[Frame, ...]:
        """Return the study's frames for a request, which ends reading them in the background.

        Raises:
            NotFound: no such study.
        """
        with self._lock:
            study = self._find(client, name)
            study.superseded.set()
            return study.frames()

    def end(self, client: Client, name: str) -> None:
        """Close a study and forget its images; `name` is its id, or its id in `listed`.

        Raises:
            NotFound: no such study.
        """
        with self._lock:
            self._forget_old()
            listed = (own for own, study in self._open.items() if study.listed_as == name)
            name = next(listed, name)
            self._find(client, name).superseded.set()
            del self._open[name]

    def forget_old(self) -> None:
        """Close the studies that have not been used for too long."""
        with self._lock:
            self._forget_old()

    def prepare_all(self) -> None:
        """Read all studies again in the background, for a new engine whose caches are empty."""
        with self._lock:
            for study in self._open.values():
                self._prepare_again(study)

    def counts(self) -> tuple[int, int]:
        """Return how many studies are open, and the bytes of their pictures."""
        with self._lock:
            return len(self._open), sum(study.bytes() for study in self._open.values())

    def close(self) -> None:
        """End background reading and accept nothing new; running calls can still ask about open studies."""
        with self._lock:
            self._closed = True
            for study in self._open.values():
                study.superseded.set()
        self._background.shutdown(wait=False, cancel_futures=True)

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Unavailable(SHUTTING_DOWN)

    def _find(self, client: Client, name: str) -> _Study:
        self._forget_old()
        study = self._open.get(name)
        if study is None and self._replaced.get(name, ("", 0.0))[0] == client.name:
            raise StudyReplaced(
                "The study was unused, and was ended because its client needed room for a newer one: begin it again, and end "
                "studies that are done."
            )
        if study is None or study.client != client.name:
            raise NotFound("There is no such study: it was ended, or has expired; begin a new one.")
        study.used = self._clock()
        return study

    def _forget_old(self) -> None:
        oldest = self._clock() - self.limits.expires_after_seconds
        for name in [name for name, study in self._open.items() if study.used < oldest and not study.calls]:
            self._open.pop(name).superseded.set()
        self._replaced = {name: ended for name, ended in self._replaced.items() if ended[1] >= oldest}

    def _make_room(self, client: Client, study: _Study, size: int) -> None:
        """Make room for `size` more bytes of pictures, by ending unused studies of the client if needed; raises Busy if there is none."""
        held = sum(other.bytes() for other in self._open.values())
        own = sum(other.bytes() for other in self._open.values() if other.client == client.name)
        excess, own_excess = held + size - self.limits.max_bytes, own + size - client.share(self.limits.max_bytes)
        ended, freed = list[tuple[str, _Study]](), 0
        for name, other in self._replaceable(client):
            if freed < max(excess, own_excess) and other is not study and other.images:
                ended.append((name, other))
                freed += other.bytes()
        if excess > freed:
            raise Busy("The memory for studies is full: end studies that are done, or try again later.", RETRY_SECONDS)
        if own_excess > freed:
            raise Busy("Your studies use all the memory of your client: end those that are done.", RETRY_SECONDS)
        self._replace(ended)

    def _replaceable(self, client: Client) -> list[tuple[str, _Study]]:
        """List the client's studies that may be ended for a newer one, the one that has been unused for longest first."""
        newest = self._clock() - self.limits.replaceable_after_seconds
        unused = [
            (name, study)
            for name, study in self._open.items()
            if study.client == client.name and not study.calls and study.used <= newest
        ]
        return sorted(unused, key=lambda named: named[1].used)

    def _replace(self, ended: Sequence[tuple[str, _Study]]) -> None:
        now = self._clock()
        for name, study in ended:
            _log.warning(
                "a study of %s was ended for a newer one of the same client; it was unused for %.0f s",
                study.client,
                now - study.used,
            )
            self._open.pop(name).superseded.set()
            self._replaced[name] = study.client, now
        while len(self._replaced) > MOST_REPLACED:
            del self._replaced[next(iter(self._replaced))]

    def _too_many(self, client: Client, own: int) -> Busy:
        after = self.limits.replaceable_after_seconds
        now = self._clock()
        waits = [
            after - (now - study.used)
            for study in self._open.values()
            if study.client == client.name and not study.calls and study.used > now - after
        ]
        return Busy(
            f"{own} of your studies are open, the maximum for your client, and all were used in the last {after:.0f} s: "
            "end one first.",
            min(RETRY_SECONDS, *waits) if waits else RETRY_SECONDS,
        )

    def _prepare_again(self, study: _Study) -> None:
        study.superseded.set()
        study.superseded = superseded = threading.Event()
        if not self._closed and (frames := study.frames()):
            self._background.submit(self._prepare_quietly, study, frames, superseded)

    def _prepare_quietly(self, study: _Study, frames: Sequence[Frame], superseded: threading.Event) -> None:
        if superseded.is_set():
            return
        try:
            self._prepare(frames, study.client, study.scope, superseded.is_set)
        except UserError:
            pass  # a request about the study gets the same error
        except Exception as error:
            _log.error("a study could not be prefilled: %s", type(error).__name__)
