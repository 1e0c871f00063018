"""How to add one of the package's extras to this installation: the package is in no index, so where it came from decides."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PACKAGE = "echovlm-edge"


def install_hint(extra: str) -> str:
    """The command that installs what `extra` needs: `pip install '/home/me/echovlm-edge[clinical]'`.

    It names the folder or the wheel that this installation was made from, as pip wrote it down (PEP 610); where that is gone, what
    the extra asks for. Several extras are separated by commas: `export,serve`.
    """
    try:
        installed = distribution(PACKAGE)
    except PackageNotFoundError:
        return f"pip install {shlex.quote(f'.[{extra}]')} in the source folder of {PACKAGE}"
    origin, editable = _origin(installed)
    if origin:
        return f"pip install {'-e ' if editable else ''}{shlex.quote(f'{origin}[{extra}]')}"
    return f"pip install {' '.join(map(shlex.quote, _requirements(installed, extra)))}"


def reinstall_hint(gpu_kernels: bool = False) -> str:
    """How to build and install the package again, after a compiler has been installed for example; or with the kernels for GPUs."""
    try:
        origin, editable = _origin(distribution(PACKAGE))
    except PackageNotFoundError:
        origin, editable = None, False
    options = "--force-reinstall --no-deps"
    if gpu_kernels:
        options += " --config-settings cmake.define.ECHOVLM_CUDA_KERNELS=ON"
    if origin and origin.is_dir():
        return f"pip install {options} {'-e ' if editable else ''}{shlex.quote(str(origin))}"
    return f"pip install {options} . in the source folder of {PACKAGE}"


def _origin(installed: Distribution) -> tuple[Path | None, bool]:
    """The folder or wheel that was installed, if it is still there, and whether as an editable one."""
    try:
        told: dict[str, Any] = json.loads(installed.read_text("direct_url.json") or "{}")
    except ValueError:
        return None, False
    url = urlsplit(str(told.get("url", "")))
    path = Path(unquote(url.path))
    if url.scheme != "file" or not (path.is_file() or (path / "pyproject.toml").is_file()):
        return None, False
    return path, bool(told.get("dir_info", {}).get("editable"))


def _requirements(installed: Distribution, extras: str) -> list[str]:
    """What extras ask for; an extra that stands for others, as `echovlm-edge[runtime]`, is resolved."""
    found: dict[str, None] = {}  # in order, each once
    for extra in extras.split(","):
        wanted = re.compile(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""")
        for line in installed.requires or ():
            requirement = line.partition(";")[0].strip()
            if not wanted.search(line):
                continue
            own = re.fullmatch(rf"{PACKAGE}\[(.*)\]", requirement)
            found |= dict.fromkeys(_requirements(installed, own[1].replace(" ", "")) if own else [requirement])
    return list(found)
