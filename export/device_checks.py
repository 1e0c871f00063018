"""What is checked on a device before its engines are built, which takes long: TensorRT, the GPU, the disk, the memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from echovlm_edge.export.devices import ON_DEVICE
from echovlm_edge.export.engines.tensorrt_module import TensorRT
from echovlm_edge.runtime.bundle.manifest import Manifest
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.jetson import jetpack
from echovlm_edge.runtime.resources.machine_memory import machine_memory
from echovlm_edge.runtime.resources.nvml import compute_capability
from echovlm_edge.runtime.resources.system_files import memory_info

OLDEST = (10, 3)  # TensorRT that the graphs and the plugin were made for
PYTHON_3_10_ONLY = 36  # Linux for Tegra of JetPack 6
# Times a part's weights that TensorRT takes while it builds, as TensorRT-RTX 1.7 does on x86-64.
BUILDING = 3.1


def check_module(name: str, root: Path = Path("/")) -> None:
    """Refuse a Jetson whose TensorRT no Python of this package can use.

    Raises:
        NotPossibleHere: the module is missing, and the system is too old to have it.
    """
    release = jetpack(root)
    if name != "tensorrt" or importlib.util.find_spec(name) is not None or release is None:
        return
    if int(release.removeprefix("L4T ").partition(".")[0]) <= PYTHON_3_10_ONLY:
        raise NotPossibleHere(
            f"This Jetson has {release}, JetPack 6 or older, whose TensorRT is for Python 3.10 alone: flash JetPack 7 (docs/jetson.md)."
        )


def check_device(path: Path, manifest: Manifest, trt: TensorRT) -> None:
    """Refuse what cannot end well, before anything is built.

    Args:
        path: the bundle.
        manifest: its description.
        trt: what builds its engines.

    Raises:
        NotPossibleHere: TensorRT is too old, the GPU is another, or the disk is full, or cannot hold a bundle while it is finished.
    """
    if trt.release() < OLDEST:
        raise NotPossibleHere(f"TensorRT {trt.version} is too old: {OLDEST[0]}.{OLDEST[1]} or later is needed.")
    wanted, found = ON_DEVICE.get(manifest.target), compute_capability() if trt.name == "tensorrt" else None
    if wanted and found and wanted.compute_capability != found:
        raise NotPossibleHere(
            f"The bundle {path} is for {manifest.target} (compute capability {_dotted(wanted.compute_capability)}), and this "
            f"machine's GPU has {_dotted(found)}: build it again with another --target."
        )
    needed, free = sum(_sizes(manifest)), shutil.disk_usage(path).free
    if free < needed:
        raise NotPossibleHere(
            f"The engines need {needed / 1e9:.1f} GB next to the graphs and {path.parent} has {free / 1e9:.1f} GB free: make room, or "
            "copy the bundle to another disk."
        )
    _check_links(path)


def warnings(manifest: Manifest, root: Path = Path("/")) -> Iterator[str]:
    """Yield a sentence on the memory, if TensorRT may not have enough while it builds the largest engine."""
    needed = BUILDING * max(_sizes(manifest))
    memory, swap = machine_memory(root).available, memory_info(root).get("SwapFree", 0)
    if memory + swap < needed:
        yield (
            f"TensorRT may need {needed / 1e9:.1f} GB for the largest engine, and {memory / 1e9:.1f} GB of memory and "
            f"{swap / 1e9:.1f} GB of swap are free: if it is killed, end other programs, or make a swap file (docs/jetson.md), and run "
            "this again."
        )


def _sizes(manifest: Manifest) -> list[int]:
    return [sum(file.bytes for file in part.files) for part in manifest.parts]


def _check_links(path: Path) -> None:
    """Refuse a file system without hard links: a bundle is finished next to itself without a copy of its weights."""
    source, link = path / "bundle.json", path.absolute().with_name(f".{path.absolute().name}.link")
    try:
        link.unlink(missing_ok=True)
        os.link(source, link)
    except OSError as error:
        raise NotPossibleHere(
            f"{path} cannot be finished where it is ({error.strerror}): copy it to a disk of the device that you can write to (ext4, "
            "not a stick), and run its script there."
        ) from None
    finally:
        with suppress(OSError):
            link.unlink(missing_ok=True)


def _dotted(capability: tuple[int, int] | None) -> str:
    return ".".join(map(str, capability or ()))
