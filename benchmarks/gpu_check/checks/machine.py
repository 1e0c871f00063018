"""Stage `machine`: the GPU, its driver, what is installed, and how fast its memory is copied and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks.gpu_check.bandwidth import measured_bandwidth
from benchmarks.gpu_check.figures import MachineFigures
from benchmarks.gpu_check.setting import Setting
from echovlm_edge.plugins.dual_path_moe.gpu_kernels import has_gpu_kernels
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from echovlm_edge.runtime.profiling.measurement.machine import PACKAGES, cpu_name, package_version
from echovlm_edge.runtime.resources.nvml import nvidia_gpus
from echovlm_edge.runtime.resources.processors import usable_processors

ALSO = ("cuda-python", "cuda-bindings", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "torch", "triton")


def run(setting: Setting, keep: Callable[[MachineFigures], None]) -> None:
    """Describe the machine, then measure its bandwidth.

    Raises:
        NotPossibleHere: there is no GPU, or no package for one.
    """
    device = CudaDevice()
    gpu = next(iter(nvidia_gpus()), None)
    version = int(device.call("cuDriverGetVersion"))
    figures = MachineFigures(
        gpu=device.name,
        sm=device.compute_capability,
        driver=gpu.driver if gpu else "",
        cuda=f"{version // 1000}.{version % 1000 // 10}",
        memory_gb=round((gpu.memory if gpu else device.free_bytes()) / 1e9, 1),
        power_limit_watts=gpu.power_limit if gpu else None,
        clock_max_mhz=gpu.clock_max if gpu else None,
        kernels=has_gpu_kernels(divmod(device.compute_capability, 10)),
        cpu=cpu_name(),
        cores=usable_processors(),
        packages={name: found for name in (*PACKAGES, *ALSO) if (found := package_version(name))},
    )
    keep(figures)
    keep(replace(figures, bandwidth=measured_bandwidth(device, setting.sizes.bandwidth_bytes)))
