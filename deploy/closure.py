"""Follow the requirements of wheels in a folder as another computer reads them: which of the wheels it needs, and what is missing.

pip collects for another processor or Python, but evaluates the conditions of requirements (`python_version < "3.12"`) on the computer it
runs on. This module evaluates them for the computer that the wheels are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

LAST_PATCH = 99  # a condition may name a patch release; which one the target has is not known, so that the first and the last count


@dataclass(frozen=True)
class Target:
    """The computer that wheels are for.

    Attributes:
        processor: as in a wheel's name, `x86_64` or `aarch64`.
        python: its Python, as `3.12`.
    """

    processor: str
    python: str

    def environments(self) -> list[dict[str, str]]:
        """Return what its markers may be evaluated with."""
        fixed = {
            **{name: str(value) for name, value in default_environment().items()},
            "implementation_name": "cpython",
            "os_name": "posix",
            "platform_machine": self.processor,
            "platform_python_implementation": "CPython",
            "platform_system": "Linux",
            "python_version": self.python,
            "sys_platform": "linux",
        }
        versions = (f"{self.python}.0", f"{self.python}.{LAST_PATCH}")
        return [{**fixed, "python_full_version": full, "implementation_version": full} for full in versions]


def metadata(wheel: Path) -> Message:
    """Read a wheel's METADATA."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA") and name.count("/") == 1)
        return message_from_bytes(archive.read(name))


def needed(wheels: Sequence[Path], package: str, extras: Sequence[str], target: Target) -> tuple[list[Path], list[str]]:
    """Return the wheels that a package with these extras needs on the target, sorted, and requirements that none of them meets."""
    by_name = {parse_wheel_filename(wheel.name)[0]: wheel for wheel in wheels}
    read = {name: metadata(wheel) for name, wheel in by_name.items()}
    environments = target.environments()
    found: set[Path] = set()
    missing: set[str] = set()
    done: set[tuple[str, str]] = set()
    waiting = [(Requirement(package).name, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        found.add(by_name[canonicalize_name(name)])
        for line in read[canonicalize_name(name)].get_all("Requires-Dist", []):
            requirement = Requirement(line)
            marker = requirement.marker
            if marker and not any(marker.evaluate({**one, "extra": extra}) for one in environments):
                continue
            wheel = by_name.get(canonicalize_name(requirement.name))
            if wheel and requirement.specifier.contains(parse_wheel_filename(wheel.name)[1], prereleases=True):
                waiting += [(requirement.name, more) for more in ("", *requirement.extras)]
            else:
                requirement.marker = None
                missing.add(str(requirement))
    return sorted(found), sorted(missing)
