"""Check that a bundle fits a device: before anything is loaded, and again when the engines state their working memory."""

from __future__ import annotations

from collections.abc import Mapping

from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.backends.bundle_memory import BundleShape, device_items
from echovlm_edge.runtime.backends.gpu.device import Device
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def check_memory(bundle: Bundle, device: Device, memory: SlotMemory) -> None:
    """Refuse a bundle whose weights, slots and kept prompts do not fit the device's free memory.

    Raises:
        NotPossibleHere: they do not; the sentence names the numbers.
    """
    _refuse_if_over(bundle, device, _needs(bundle, memory))


def check_working_memory(bundle: Bundle, device: Device, memory: SlotMemory, working: Mapping[str, int]) -> None:
    """Refuse a bundle, once its engines are loaded, whose working memory (bytes by part) and slots do not fit.

    Raises:
        NotPossibleHere: they do not fit; the sentence names the numbers.
    """
    loaded = {"engines"}
    needs = {what: size for what, size in _needs(bundle, memory).items() if what not in loaded}
    _refuse_if_over(
        bundle, device, {**{f"working memory of the {part}": size for part, size in working.items()}, **needs}
    )


def _needs(bundle: Bundle, memory: SlotMemory) -> dict[str, int]:
    return {item.what: item.bytes for item in device_items(BundleShape.of(bundle.manifest), memory)}


def _refuse_if_over(bundle: Bundle, device: Device, needs: Mapping[str, int]) -> None:
    needed, free = sum(needs.values()), device.free_bytes()
    if needed > free:
        parts = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in needs.items())
        raise NotPossibleHere(
            f"The bundle {bundle.path} needs {needed / 1e9:.2f} GB more memory on {device.name} ({parts}), of which "
            f"{free / 1e9:.2f} GB are free: close other programs, give fewer --slots or a smaller --prefix-mb, or build it with a smaller "
            "--max-sequence or fewer bits."
        )
