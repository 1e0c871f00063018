"""Run a command in another root, in namespaces of its own: as root there, without a network, for another processor by an emulator."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

# What the rehearsal calls of this computer, and the Debian package that has it.
TOOLS = {"mmdebstrap": "mmdebstrap", "unshare": "util-linux", "ip": "iproute2", "tar": "tar"}
ENVIRONMENT = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")
FOLDER = "/release"  # where a command runs inside
# The head of a 64-bit program for aarch64, and which of its bits count, as binfmt_misc reads them. O: the kernel opens the program for
# the emulator; F: it opens the emulator now, outside of the root. The registration is seen in this user namespace alone.
AARCH64 = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
SCRIPT = rf"""
root=$1 emulator=$2; shift 2
if test -n "$emulator"; then
    mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    printf '%s' ':rehearsal:M::{AARCH64}:'"$emulator"':OF' > /proc/sys/fs/binfmt_misc/register
fi
ip link set lo up
mount -t proc none "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs none "$root/dev"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
exec chroot "$root" /usr/bin/env -i "$@"
"""


@dataclass(frozen=True)
class Namespace:
    """Where commands run.

    Attributes:
        root: the folder that is their root.
        emulator: of their processor; none where it is this computer's.
        emulated: the model that the emulator shows, as `cortex-a76`; empty for its default.
    """

    root: Path
    emulator: Path | None = None
    emulated: str = ""

    def words(self, command: str) -> list[str]:
        """Return what runs a line of sh in the root's folder `FOLDER`."""
        model = [f"QEMU_CPU={self.emulated}"] if self.emulator and self.emulated else []
        apart = ["--map-root-user", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child"]
        inside = [*ENVIRONMENT, *model, "/bin/sh", "-ec", f"cd {FOLDER}\n{command}"]
        emulator = str(self.emulator.resolve()) if self.emulator else ""
        return ["unshare", *apart, "/bin/sh", "-ec", SCRIPT, "rehearsal", str(self.root.resolve()), emulator, *inside]


def check_tools() -> None:
    """Look for what the rehearsal calls.

    Raises:
        NotPossibleHere: some of it is missing; the message names the packages.
    """
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if missing:
        raise NotPossibleHere(f"the rehearsal needs {', '.join(missing)} (apt-get install --yes {' '.join(missing)}).")


def emulator_for(processor: str, given: Path | None) -> Path | None:
    """Return qemu's emulator of a processor, or none where this computer has that processor.

    Raises:
        NotPossibleHere: there is none, or it needs libraries, which the other root does not have.
    """
    if processor == platform.machine():
        return None
    found = given or next(filter(None, map(shutil.which, (f"qemu-{processor}-static", f"qemu-{processor}"))), None)
    hint = "install qemu-user of Debian 13 or newer, or give --emulator FILE (docs/release.md)"
    if not found or not Path(found).is_file():
        raise NotPossibleHere(f"there is no emulator for {processor} here: {hint}.")
    # A program that the dynamic loader starts names it near its head.
    if b"/ld-linux" in Path(found).read_bytes()[:4096]:
        raise NotPossibleHere(f"{found} needs shared libraries, which the other root does not have: {hint}.")
    return Path(found)
