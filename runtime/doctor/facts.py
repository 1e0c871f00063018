"""Read what this machine reports about itself: processor features, GPU, driver, TensorRT, JetPack, power mode, clocks, memory."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from echovlm_edge.plugins.dual_path_moe.gpu_kernels import has_gpu_kernels
from echovlm_edge.runtime.profiling.measurement import machine
from echovlm_edge.runtime.resources import jetson
from echovlm_edge.runtime.resources.machine_memory import machine_memory
from echovlm_edge.runtime.resources.nvml import Gpu, compute_capability, nvidia_gpus
from echovlm_edge.runtime.resources.processors import processor_quota
from echovlm_edge.runtime.resources.system_files import first_line, memory_info

# What the operators' kernels ask for, by the names of /proc/cpuinfo.
CPU_FEATURES = ("avx2", "fma", "f16c", "avx_vnni", "avx512_vnni", "avx512bw", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Facts:
    """A machine's facts, in bytes and MHz; empty or None where it does not report them.

    Attributes:
        architecture: x86_64 or aarch64.
        features: of `CPU_FEATURES`, those it has.
        governors: of the cores' clocks.
        clock_max: the fastest core's.
        clock_now: the fastest core's, now.
        memory: all of it.
        available: what can be had now, within `container_limit`.
        swap: of all swap.
        swap_used: of it.
        container_limit: of this process's group, where there is one.
        gpus: NVIDIA's.
        tensorrt: its Python modules by name.
        jetpack: of a Jetson.
        power_mode: nvpmodel's name for it.
        power_modes: all that nvpmodel knows, by number.
        kernels: that the operators use here; None where they were not built.
        gpu_kernels: whether this install has kernels for the first GPU.
    """

    architecture: str
    cpu: str
    cores: int
    cores_allowed: int
    features: tuple[str, ...]
    memory: int
    available: int
    swap: int
    swap_used: int
    governors: tuple[str, ...] = ()
    clock_max: int | None = None
    clock_now: int | None = None
    container_limit: int | None = None
    cpu_quota: float | None = None
    gpus: tuple[Gpu, ...] = ()
    tensorrt: dict[str, str] = field(default_factory=dict)
    onnxruntime: str = ""
    providers: tuple[str, ...] = ()
    device: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    power_modes: dict[int, str] = field(default_factory=dict)
    kernels: str | None = None
    gpu_kernels: bool = False


def facts(root: Path = Path("/")) -> Facts:
    """Read this machine's facts; `root` is the folder with its /proc, /sys and /etc."""
    info = machine.cpu_info(root)
    memory, mine = memory_info(root), machine_memory(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    clocks = root / "sys/devices/system/cpu"
    modes, capability = jetson.power_modes(root), compute_capability()
    return Facts(
        architecture=platform.machine(),
        cpu=machine.cpu_name(root),
        cores=os.cpu_count() or 1,
        cores_allowed=len(os.sched_getaffinity(0)),
        features=tuple(name for name in CPU_FEATURES if name in flags),
        memory=memory.get("MemTotal", 0),
        available=mine.available,
        swap=memory.get("SwapTotal", 0),
        swap_used=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        governors=tuple(
            sorted({found for path in clocks.glob("cpu[0-9]*/cpufreq/scaling_governor") if (found := first_line(path))})
        ),
        clock_max=_largest_mhz(clocks, "cpuinfo_max_freq"),
        clock_now=_largest_mhz(clocks, "scaling_cur_freq"),
        container_limit=mine.limit,
        cpu_quota=processor_quota(root),
        gpus=nvidia_gpus(),
        tensorrt={
            name: found for name in ("tensorrt", "tensorrt-rtx-cu13") if (found := machine.package_version(name))
        },
        onnxruntime=machine.package_version("onnxruntime-gpu") or machine.package_version("onnxruntime") or "",
        providers=_providers(),
        device=first_line(root / "proc/device-tree/model"),
        jetpack=jetson.jetpack(root),
        power_modes=modes,
        power_mode=jetson.power_mode() if modes else None,
        kernels=machine.kernels(),
        gpu_kernels=capability is not None and has_gpu_kernels(capability),
    )


def _providers() -> tuple[str, ...]:
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def _largest_mhz(folder: Path, name: str) -> int | None:
    found = [_number(first_line(path)) for path in folder.glob(f"cpu[0-9]*/cpufreq/{name}")]
    known = [number for number in found if number is not None]
    return max(known) // 1000 if known else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
