"""Time the kernels that a call launches on the GPU, whoever launches them, by PyTorch's profiler (CUPTI)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

NAME = 60  # characters of a kernel's name that are kept


def kernel_times(call: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Run `call`; returns how often each kernel ran, and its seconds in all. Empty without a PyTorch that sees the GPU."""
    try:
        import torch
        from torch.profiler import ProfilerActivity, profile
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    torch.cuda.init()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for event in profiled.key_averages():
        name = short(event.key)
        count, seconds = found[name]
        found[name] = (count + event.count, seconds + event.self_device_time_total / 1e6)
    return {name: times for name, times in found.items() if times[1]}


def short(name: str) -> str:
    """Shorten a kernel's C++ name to that of its function: no result, namespaces, template arguments or parameters."""
    before = None
    while name != before:  # innermost first
        before, name = name, re.sub(r"<[^<>]*>|\([^()]*\)", "", name)
    return (name.split("::")[-1].split() or [name])[-1][:NAME]
