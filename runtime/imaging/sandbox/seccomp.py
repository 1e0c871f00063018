"""A seccomp filter by names of system calls: others fail with EPERM, and calls that only an attacker makes end the process.

Numbers are those of the kernel's tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping

# Name: number on x86-64 and on 64-bit ARM; None where that has no such call.
NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fcntl": (72, 25),
    "fork": (57, None),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcpu": (309, 168),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "kill": (62, 129),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "membarrier": (324, 283),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "prctl": (157, 167),
    "prlimit64": (302, 261),
    "pselect6": (270, 72),
    "read": (0, 63),
    "readv": (19, 65),
    "recvmsg": (47, 212),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "select": (23, None),
    "set_robust_list": (273, 99),
    "sigaltstack": (131, 132),
    "sysinfo": (99, 179),
    "time": (201, None),
    "times": (100, 153),
    "uname": (63, 160),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "write": (1, 64),
    "writev": (20, 66),
    # what only an attacker asks for
    "bpf": (321, 280),
    "execve": (59, 221),
    "execveat": (322, 281),
    "io_uring_setup": (425, 425),
    "mount": (165, 40),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
HOSTILE = (
    *("bpf", "execve", "execveat", "io_uring_setup", "mount", "process_vm_readv", "process_vm_writev", "ptrace"),
    *("unshare", "userfaultfd"),
)
# linux/audit.h
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
X32_BIT = 0x40000000  # on x86-64: another table of numbers
# linux/seccomp.h, linux/filter.h, linux/prctl.h
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_AT_LEAST, JUMP_IF_ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data; arguments of 8 bytes, the low half first
PROT_EXEC = 4
F_DUPFD_CLOEXEC, F_GET_SEALS = 1030, 1034  # linux/fcntl.h

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def install(allowed: tuple[str, ...]) -> None:
    """Allow only these system calls from now on, in this thread and in what it starts. It cannot be undone, only tightened.

    `prlimit64` is allowed for this process only; memory cannot be made executable; `fcntl` can only duplicate a descriptor or read
    a file's seals.

    Raises:
        OSError: the kernel has no seccomp, or this module has no table for this architecture.
    """
    filters = [struct.pack("=HBBI", *instruction) for instruction in _program(allowed)]
    array = ctypes.create_string_buffer(b"".join(filters))
    # struct sock_fprog: the count, and a pointer behind its padding
    program = ctypes.create_string_buffer(struct.pack("@HP", len(filters), ctypes.addressof(array)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(program)), 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _program(allowed: tuple[str, ...]) -> Iterator[Instruction]:
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    architecture, column = ARCHITECTURES[machine]
    yield LOAD_WORD, 0, 0, ARCHITECTURE_AT
    yield JUMP_IF_EQUAL, 1, 0, architecture
    yield RETURN, 0, 0, KILL_PROCESS
    yield LOAD_WORD, 0, 0, NUMBER_AT
    if machine == "x86_64":
        yield JUMP_IF_AT_LEAST, 0, 1, X32_BIT
        yield RETURN, 0, 0, KILL_PROCESS
    for name in (*allowed, *HOSTILE):
        number = NUMBERS[name][column]
        if number is None:
            continue
        checks = _checks(name) if name not in HOSTILE else []
        verdict = KILL_PROCESS if name in HOSTILE else ALLOW
        yield JUMP_IF_EQUAL, 0, len(checks) + 1, number
        yield from checks
        yield RETURN, 0, 0, verdict
    yield RETURN, 0, 0, ERRNO | errno.EPERM


def _checks(name: str) -> list[Instruction]:
    """Make the checks of a call's arguments, where not all are allowed; they fall through to the verdict, or refuse."""
    refuse = RETURN, 0, 0, ERRNO | errno.EPERM
    if name == "prlimit64":  # the first argument: a process, 0 for this one
        return [(LOAD_WORD, 0, 0, ARGUMENTS_AT), (JUMP_IF_EQUAL, 1, 0, 0), refuse]
    if name == "fcntl":  # the second argument: what to do
        allowed = (JUMP_IF_EQUAL, 2, 0, F_DUPFD_CLOEXEC), (JUMP_IF_EQUAL, 1, 0, F_GET_SEALS)
        return [(LOAD_WORD, 0, 0, ARGUMENTS_AT + 8), *allowed, refuse]
    if name in ("mmap", "mprotect"):  # the third argument: protection
        return [(LOAD_WORD, 0, 0, ARGUMENTS_AT + 2 * 8), (JUMP_IF_ANY_BIT, 0, 1, PROT_EXEC), refuse]
    return []
