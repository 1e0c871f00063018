"""What became of loading the bundles of a folder: which was refused and why, and which ended the server's process.

    /var/lib/echovlm/bundles/loads/echovlm-5c1d09ab.refused             why, one sentence; until it serves or is installed again
                                   echovlm-5c1d09ab.loading-k3x9q2za    a process loads it, and holds a lock on this file

A file `loading` that nobody has locked is of a process that ended while it loaded: it crashed, the kernel killed it, or the power
failed. The server writes here and nowhere else, so that it needs no right to change the bundles and their links.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.atomic_file import write_whole

LOADS = "loads"
MOST_CRASHES = 2  # one may be a power failure
_MOST_BYTES = 1 << 16  # of a record that is read
_READABLE = 0o644  # by the doctor and whoever installs, whatever the server's umask is
_REFUSED, _LOADING = ".refused", ".loading-"
_RECORD = re.compile(r"(.+)\.loading-\w+", re.DOTALL)  # a bundle may be called so, too: the last part is the record's

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefusedBundle:
    """The bundle that should serve and does not.

    Attributes:
        name: of its folder, printable.
        reason: one sentence, for the operator, printable; it may have paths of the server.
    """

    name: str
    reason: str


class Loads:
    """The records of one folder of bundles. Where they cannot be written, the log says so, and bundles are loaded without."""

    def __init__(self, folder: Path) -> None:
        """Read and write the records of `folder`, which holds the bundles."""
        self._folder, self._lock = folder / LOADS, threading.Lock()
        self._stopped = False
        self._loading: Path | None = None

    def refusal(self, name: str) -> str:
        """Return why a bundle was refused, one sentence; empty where it was not."""
        try:
            with _opened(self._folder / f"{name}{_REFUSED}") as file:
                return _text(file).strip() or "The reason is lost."
        except (FileNotFoundError, NotADirectoryError):
            return ""
        except (OSError, UnicodeDecodeError):
            return "The reason cannot be read."

    def crashes(self, name: str) -> int:
        """Count the processes that ended while they loaded a bundle, by this version of the package."""
        return sum(_crashed(file) for file in self._files(name))

    def is_good(self, name: str) -> bool:
        """Return whether nothing is recorded against a bundle."""
        return not self.refusal(name) and not self.crashes(name)

    @contextmanager
    def loading(self, name: str) -> Iterator[None]:
        """Load a bundle: if the process ends before the context does, that counts as a crash."""
        with self._lock:
            opened = None if self._stopped else self._begin(name)
        try:
            yield
        finally:
            with self._lock:
                self._end()
            if opened is not None:
                os.close(opened)

    def refuse(self, name: str, reason: str) -> None:
        """Record that a bundle was refused, and why."""
        with self._lock:
            if not self._stopped and self._made():
                file = self._folder / f"{name}{_REFUSED}"
                try:
                    write_whole(file, reason.encode())
                    file.chmod(_READABLE)
                except (NotPossibleHere, OSError) as error:
                    _log.warning("%s", error)

    def clear(self, name: str) -> None:
        """Forget what is recorded against a bundle: it serves, or is to be tried again.

        Raises:
            NotPossibleHere: a record cannot be deleted.
        """
        for file in (*self._files(name), self._folder / f"{name}{_REFUSED}"):
            try:
                if not _is_locked(file):
                    file.unlink()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise NotPossibleHere(
                    f"{file} cannot be deleted ({error.strerror}), and is held against the bundle {name}: delete it."
                ) from None

    def stop(self) -> None:
        """Record nothing more: the process is stopped, and a load that this cuts off did not crash."""
        with self._lock:
            self._stopped = True
            self._end()

    def _begin(self, name: str) -> int | None:
        """Write the record of a load, which is locked when it gets its name; returns its open file."""
        if not self._made():
            return None
        with ExitStack() as undo:
            try:
                opened, partial = tempfile.mkstemp(dir=self._folder, prefix=f".{name}{_LOADING}")
                undo.callback(os.close, opened)
                undo.callback(Path(partial).unlink, missing_ok=True)
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.write(opened, version("echovlm-edge").encode())
                os.fchmod(opened, _READABLE)
                record = Path(partial).with_name(Path(partial).name[1:])
                Path(partial).rename(record)
            except OSError as error:
                _log.warning("%s cannot be written: %s", self._folder, error.strerror)
                return None
            undo.pop_all()
        self._loading = record
        return opened

    def _end(self) -> None:
        if self._loading:
            with suppress(OSError):
                self._loading.unlink(missing_ok=True)
            self._loading = None

    def _made(self) -> bool:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            _log.warning(
                "%s cannot be made (%s), so that a bundle which crashes the server whenever it is loaded is not recognised: "
                "make it, writable by the server's user",
                self._folder,
                error.strerror,
            )
            return False
        return True

    def _files(self, name: str) -> list[Path]:
        """List the records of a bundle's loads; what is no regular file is none."""
        try:
            found = [Path(entry) for entry in os.scandir(self._folder) if entry.is_file(follow_symlinks=False)]
        except OSError:
            return []
        return sorted(file for file in found if (parts := _RECORD.fullmatch(file.name)) and parts[1] == name)


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    """Open a record without waiting: a pipe has its name, perhaps.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    opened = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(file))
        yield opened
    finally:
        os.close(opened)


def _text(opened: int) -> str:
    return os.read(opened, _MOST_BYTES).decode()


def _has_lock(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_locked(file: Path) -> bool:
    try:
        with _opened(file) as opened:
            return _has_lock(opened)
    except OSError:
        return False


def _crashed(file: Path) -> bool:
    """Return whether the process of a record has ended without deleting it; another version's may load now what crashed then."""
    try:
        with _opened(file) as opened:
            return not _has_lock(opened) and _text(opened) == version("echovlm-edge")
    except (OSError, UnicodeDecodeError):  # it has ended meanwhile
        return False
