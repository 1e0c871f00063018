"""What is misconfigured on a machine and how to fix it; which target suits it, and which bundles fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from echovlm_edge.runtime.backends.bundle_memory import BundleShape
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.bundle.signature import PublicKey
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.extras import install_hint, reinstall_hint
from echovlm_edge.runtime.doctor.facts import Facts
from echovlm_edge.runtime.resources.machine_memory import MachineMemory
from echovlm_edge.runtime.serving.supervision.memory_fit import Fit, Verdict, judge
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings

SLOW_CLOCK = 0.7  # of its fastest, at which a clock is held back while nothing says why
# What the operators' own kernels need: without one of them the portable code runs.
KERNEL_FEATURES = {"x86_64": ("avx2",), "aarch64": ("asimddp",)}


class Level(Enum):
    """How much a finding matters."""

    WRONG = "wrong"  # it will not run, or far too slowly
    SLOW = "slow"  # it runs, slower than it could
    FINE = "fine"


@dataclass(frozen=True)
class Finding:
    """One thing about the machine, and what to do about it; `fix` is empty where nothing needs to be done."""

    level: Level
    what: str
    fix: str = ""


def findings(facts: Facts) -> list[Finding]:
    """List all findings about the machine, the worst first."""
    found = [*_cpu(facts), *_memory(facts), *_power(facts), *_gpu(facts)]
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def _cpu(facts: Facts) -> list[Finding]:
    found = []
    if facts.kernels is None:
        found.append(
            Finding(
                Level.SLOW,
                "The CPU operators were not built.",
                f"Install a C++ compiler, then: {reinstall_hint()}.",
            )
        )
    needed = KERNEL_FEATURES.get(facts.architecture, ())
    if needed and not set(needed) & set(facts.features):
        found.append(
            Finding(Level.SLOW, f"The CPU lacks {needed[0]}: portable code runs in its place.", "Use another machine.")
        )
    if slow := [name for name in facts.governors if name not in ("performance", "schedutil")]:
        found.append(
            Finding(
                Level.SLOW,
                f"The CPU's clock is governed by {', '.join(slow)}.",
                "sudo cpupower frequency-set -g performance, or write performance to "
                "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor.",
            )
        )
    if facts.cores_allowed < facts.cores:
        found.append(
            Finding(
                Level.SLOW,
                f"This process may use {facts.cores_allowed} of {facts.cores} cores.",
                "Give it more: taskset, CPUAffinity of the systemd unit, or the container's --cpuset-cpus.",
            )
        )
    if facts.cpu_quota is not None and facts.cpu_quota < facts.cores_allowed:
        found.append(
            Finding(
                Level.SLOW,
                f"This process's group gets the time of {facts.cpu_quota:g} cores, of {facts.cores_allowed}.",
                f"Raise the limit (CPUQuota, or the container's --cpus): until then {math.ceil(facts.cpu_quota)} threads compute.",
            )
        )
    return found


def _memory(facts: Facts) -> list[Finding]:
    found = []
    if facts.swap_used > 0.05 * facts.memory:
        found.append(
            Finding(
                Level.SLOW,
                f"{facts.swap_used / 1e9:.1f} GB lie in swap: weights that were swapped out are read back for each token.",
                "Close other programs, then sudo swapoff -a && sudo swapon -a; lower vm.swappiness.",
            )
        )
    if facts.jetpack and facts.swap == 0:
        found.append(
            Finding(
                Level.SLOW,
                "There is no swap: building engines on this device can run out of memory.",
                "Make a swap file on NVMe for the build: fallocate -l 16G, mkswap, swapon.",
            )
        )
    if facts.container_limit is not None and facts.container_limit < 0.5 * facts.memory:
        found.append(
            Finding(
                Level.SLOW,
                f"This process's group may use {facts.container_limit / 1e9:.1f} of {facts.memory / 1e9:.1f} GB.",
                "Raise the limit (MemoryMax, or the container's --memory) where a bundle does not fit it.",
            )
        )
    return found


def _power(facts: Facts) -> list[Finding]:
    largest = next((name for name in facts.power_modes.values() if name.startswith("MAXN")), None)
    if facts.power_mode is None or largest is None or facts.power_mode.startswith("MAXN"):
        return []
    number = next(number for number, name in facts.power_modes.items() if name == largest)
    return [
        Finding(
            Level.SLOW,
            f"The power mode is {facts.power_mode}, not {largest}.",
            f"sudo nvpmodel -m {number}, then sudo jetson_clocks; where the power budget forbids it, leave it so.",
        )
    ]


def _gpu(facts: Facts) -> list[Finding]:
    found = []
    for gpu in facts.gpus:
        if gpu.power_limit and gpu.power_default and gpu.power_limit < 0.95 * gpu.power_default:
            found.append(
                Finding(
                    Level.SLOW,
                    f"{gpu.name} is held to {gpu.power_limit:g} W of its {gpu.power_default:g} W.",
                    f"sudo nvidia-smi -pl {gpu.power_default:g}.",
                )
            )
        if gpu.clock and gpu.clock_max and gpu.clock < SLOW_CLOCK * gpu.clock_max:
            found.append(Finding(Level.FINE, f"{gpu.name} runs at {gpu.clock} of {gpu.clock_max} MHz: it is at rest."))
    if facts.gpus and "CUDAExecutionProvider" not in facts.providers and not facts.tensorrt:
        found.append(
            Finding(
                Level.SLOW,
                f"{facts.gpus[0].name} is not used: neither TensorRT nor ONNX Runtime for GPUs is installed.",
                f"{install_hint('rtx')}; or pip uninstall onnxruntime and {install_hint('gpu')}.",
            )
        )
    return found


def target_for(facts: Facts) -> str:
    """Choose the `--target` of echovlm-build for this machine."""
    device = (facts.device or "").lower()
    for words, target in (
        ("orin nano", "jetson-orin-nano"),
        ("igx orin", "igx-orin"),
        ("orin", "jetson-orin"),
        ("thor", "jetson-thor"),
    ):
        if words in device:
            return target
    names = " ".join(gpu.name for gpu in facts.gpus)
    if "GB10" in names:
        return "dgx-spark"
    if any(_capability(gpu.capability) >= (8, 0) for gpu in facts.gpus):
        return "rtx" if facts.architecture == "x86_64" and "RTX" in names else "cuda"
    return "cuda" if facts.gpus else "cpu"


def _capability(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(".") if number.isdecimal())


def fits(path: Path, facts: Facts, settings: ServeSettings | None = None, verify: bool = False) -> Finding:
    """Judge whether the bundle at `path` can be served here: its files are intact, it is for this machine, and it fits the memory.

    Args:
        path: the bundle.
        facts: the machine.
        settings: the server's; without them its defaults. With `require_signature` the bundle must be signed, and is hashed.
        verify: hash every file, which reads the whole bundle; otherwise only sizes are compared.
    """
    try:
        signers = [PublicKey.read(file) for file in settings.require_signature] if settings else []
        bundle = Bundle(path, verify=verify, finished=False, signers=signers)
    except UserError as error:
        return Finding(Level.WRONG, str(error))
    manifest = bundle.manifest
    name = f"{path} ({manifest.source.name}, {manifest.precision} for {manifest.target})"
    if manifest.finish_with:
        return Finding(
            Level.WRONG, f"{name} has no engines yet.", f"On the device it is for: sh {path / manifest.finish_with}."
        )
    wanted = target_for(facts)
    runs_on = {"cpu", "portable", wanted} | ({"cuda"} if facts.gpus else set())
    if manifest.target not in runs_on:
        return Finding(
            Level.WRONG,
            f"{name} is for another machine.",
            f"Build it with --target {' or '.join(dict.fromkeys((wanted, 'cpu')))}.",
        )
    memory = MachineMemory(facts.memory, facts.container_limit, facts.available)
    gpu = facts.gpus[0].memory if facts.gpus else None
    try:
        verdict = judge(BundleShape.of(manifest), settings or ServeSettings(bundle=path), memory, gpu)
    except UserError as error:
        return Finding(Level.WRONG, f"{name}: {error}")
    if verdict.fit in (Fit.NEVER, Fit.SHORT):
        return _memory_finding(Level.WRONG, name, verdict)
    if manifest.operator_library and manifest.target == "cpu" and facts.kernels is None:
        return Finding(
            Level.WRONG,
            f"{name} needs the CPU operators, which were not built here.",
            f"Install a C++ compiler, then: {reinstall_hint()}; or build the bundle with --target portable.",
        )
    if manifest.operator_library and manifest.target == "cuda" and not facts.gpu_kernels:
        return Finding(
            Level.WRONG,
            f"{name} needs kernels for this GPU, which were not built here.",
            f"Install triton, then: {reinstall_hint(gpu_kernels=True)}; or build the bundle with --spell-out.",
        )
    if verdict.fit is Fit.CROWDED:
        return _memory_finding(Level.SLOW, name, verdict)
    faster = wanted != "cpu" and manifest.target in ("cpu", "portable")
    slower = f" A bundle built with --target {wanted} would use the GPU." if faster else ""
    return Finding(Level.SLOW if slower else Level.FINE, f"{name} fits. {verdict.sentence}.{slower}")


def _memory_finding(level: Level, name: str, verdict: Verdict) -> Finding:
    return Finding(level, f"{name}: {verdict.sentence}.", f"{verdict.fix[0].upper()}{verdict.fix[1:]}.")
