"""Describe this computer from what Linux reports, without guessing."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary
from echovlm_edge.runtime.profiling.schema import Machine
from echovlm_edge.runtime.resources.nvml import nvidia_gpus
from echovlm_edge.runtime.resources.processors import usable_processors
from echovlm_edge.runtime.resources.system_files import first_line, memory_info, text

PACKAGES = ("echovlm-edge", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "numpy")


def this_machine(root: Path = Path("/")) -> Machine:
    """Describe this computer; `root` is the folder with its /proc and /sys."""
    return Machine(
        cpu=cpu_name(root),
        cores=usable_processors(root),
        memory_gb=round(memory_info(root).get("MemTotal", 0) / 1e9, 1),
        system=platform.platform(),
        python=platform.python_version(),
        governor=governor(root),
        gpu=next((gpu.name for gpu in nvidia_gpus()), None),
        kernels=kernels(),
        device=first_line(root / "proc/device-tree/model"),
        toolchain={name: found for name in PACKAGES if (found := package_version(name))},
    )


def cpu_name(root: Path = Path("/")) -> str:
    """Return the processor's name from /proc/cpuinfo; ARM has none there, so that the architecture is returned."""
    return cpu_info(root).get("model name") or cpu_info(root).get("Hardware") or platform.machine()


def cpu_info(root: Path) -> dict[str, str]:
    """Read the first core's lines of /proc/cpuinfo."""
    found: dict[str, str] = {}
    for line in text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def governor(root: Path) -> str | None:
    """Return the governor of the first core's clock, where the system reports it."""
    return first_line(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def kernels() -> str | None:
    """Return the instruction set that this project's operators use here, where they were built."""
    path = library_path()
    return NativeLibrary(path).kernel if path else None


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
