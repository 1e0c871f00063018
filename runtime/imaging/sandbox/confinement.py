"""Confine a process that decodes files, step by step; each step is tested afterwards, and one that has no effect is reported."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.imaging.sandbox import landlock, seccomp

# linux/prctl.h, linux/sched.h, linux/capability.h
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS = 1, 4, 38, 39
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
CAPABILITY_VERSION_3 = 0x20080522
OPEN_FILES = 64
OOM_SCORE = 800  # of -1000 to 1000: when memory runs out, the kernel kills this process before the server

# All that decoding a file that is in memory takes; `fcntl`, to map it.
DECODING = (
    *(
        "brk",
        "clock_getres",
        "clock_gettime",
        "clock_nanosleep",
        "close",
        "exit",
        "exit_group",
        "fcntl",
        "fstat",
        "futex",
    ),
    *("getcpu", "getpid", "getppid", "getrandom", "getrusage", "gettid", "gettimeofday", "lseek", "madvise"),
    *("membarrier", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "prlimit64", "read", "readv"),
    *("restart_syscall", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield"),
    *("set_robust_list", "sigaltstack", "sysinfo", "time", "times", "uname", "write", "writev"),
)
# And what receiving files and starting a process for each takes.
STARTING = (
    *("clone", "fork", "kill", "pipe", "pipe2", "poll", "ppoll", "prctl", "pselect6", "recvmsg", "select", "wait4"),
    *("waitid",),
)


@dataclass(frozen=True)
class Confinement:
    """The confinements in force, by name; and those that are not, each with the reason."""

    holds: tuple[str, ...]
    lacks: tuple[tuple[str, str], ...]

    def sentence(self) -> str:
        """Describe the confinement for the log."""
        said = f"image decoding is confined by: {', '.join(self.holds) or 'nothing'}"
        return said + ("; not by: " + ", ".join(f"{name} ({why})" for name, why in self.lacks) if self.lacks else "")


class NotInForce(Exception):
    """A confinement was requested, but what it should deny is still possible; the text says why."""


def confine(memory_bytes: int, user: int) -> Confinement:
    """Confine this process as far as the system allows; it must have loaded and opened everything that it needs.

    Args:
        memory_bytes: limit of its address space.
        user: the user and group id that it takes where root starts it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    network = _network()
    steps: dict[str, Callable[[], None]] = {
        "own user": lambda: _own_user(libc, user),
        "no network": lambda: _no_network(libc, network),
        "no capabilities": lambda: _no_capabilities(libc),
        "limits": lambda: _limits(memory_bytes),
        "landlock": _landlock,
        "seccomp": lambda: _seccomp((*DECODING, *STARTING)),
    }
    if os.geteuid() == 0:
        libc.unshare(CLONE_NEWNET | CLONE_NEWIPC)  # while this is allowed; whether it worked is tested below
    holds, lacks = [], []
    for name, step in steps.items():
        try:
            step()
            holds.append(name)
        except NotInForce as why:
            lacks.append((name, str(why)))
        except OSError as error:
            lacks.append((name, os.strerror(error.errno) if error.errno else str(error)))
    return Confinement(tuple(holds), tuple(lacks))


def confine_to_one_file(starter: int, seccomp_holds: bool) -> None:
    """Confine the process of one file further: it cannot start others, and it ends with the process `starter`."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the signal follows the parent's thread, and the parent has only one
    if os.getppid() != starter:  # the parent ended before this call
        os._exit(1)
    if seccomp_holds:
        seccomp.install(DECODING)


def denied(attempt: Callable[[], object]) -> bool:
    """Check whether the kernel refuses an attempt."""
    try:
        attempt()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _own_user(libc: ctypes.CDLL, user: int) -> None:
    if os.geteuid() != 0:
        raise NotInForce("the server does not run as root")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    if os.getresuid() != (user,) * 3 or os.getresgid() != (user,) * 3 or os.getgroups() or user == 0:
        raise NotInForce("it still runs as root")


def _no_network(libc: ctypes.CDLL, before: int) -> None:
    if _network() == before and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC):
        raise OSError(ctypes.get_errno(), "unshare")
    if _network() == before:
        raise NotInForce("the network is still the server's")


def _network() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def _no_capabilities(libc: ctypes.CDLL) -> None:
    """Drop all capabilities, which a new user namespace grants."""
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    libc.capset(header, bytes(24))
    libc.prctl(PR_SET_DUMPABLE, 0)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    if any(int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb")):
        raise NotInForce("it still has some")
    if libc.prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        raise NotInForce("it can get new ones")


def _limits(memory_bytes: int) -> None:
    """Set resource limits: no core file, no new files, few open files, limited memory."""
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_AS: memory_bytes,
    }
    for kind, limit in wanted.items():
        _, hard = resource.getrlimit(kind)
        lower = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (lower, lower))
    if any(resource.getrlimit(kind)[1] > limit for kind, limit in wanted.items()):
        raise NotInForce("they were not taken")


def _landlock() -> None:
    open_root = lambda: os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))  # noqa: E731
    open_root()
    landlock.give_up_everything()
    if not denied(open_root):
        raise NotInForce("files can still be opened")


def _seccomp(allowed: tuple[str, ...]) -> None:
    seccomp.install(allowed)
    if not denied(lambda: os.open("/", os.O_RDONLY)) or not denied(lambda: socket.socket().close()):
        raise NotInForce("files and sockets can still be opened")
