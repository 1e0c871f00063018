"""Measure how fast a GPU's memory is copied and read: by the driver's own copy, and by a kernel that only reads.

The kernel is PTX, which the driver compiles for any GPU: no compiler is needed.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable

import numpy as np

from benchmarks.gpu_check.figures import Bandwidth
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice, CudaStream

THREADS, BLOCKS = 256, 4096  # of the reading kernel
UNROLLED = 4  # 16-byte loads that each thread has under way at a time
RANDOM = 64 << 20  # bytes; the memory is filled with copies of as many random ones
REPEATS = 15


def measured_bandwidth(device: CudaDevice, size: int) -> Bandwidth:
    """Copy and read `size` bytes again and again; returns the medians. They should be many times the GPU's caches."""
    device.enter()
    stream = device.new_stream()
    source, target = device.allocate(size), device.allocate(size)
    block = device.stage(min(RANDOM, size))
    block.bytes[:] = np.frombuffer(np.random.default_rng(0).bytes(len(block.bytes)), np.uint8)
    for start in range(0, size, len(block.bytes)):
        stream.upload(block.bytes[: size - start], source.address + start)
    stream.synchronize()

    def copy() -> None:
        device.call("cuMemcpyDtoDAsync", target.address, source.address, size, stream.handle)

    module = device.call("cuModuleLoadData", reading_kernel().encode() + b"\0")
    kernel = device.call("cuModuleGetFunction", module, b"read_all")
    parameters = (source.address, size // 16, target.address)
    types = (ctypes.c_uint64,) * 3

    def read() -> None:
        device.call("cuLaunchKernel", kernel, BLOCKS, 1, 1, THREADS, 1, 1, 0, stream.handle, (parameters, types), 0)

    read()  # the driver may load a kernel at its first launch, which cannot be recorded
    stream.synchronize()
    return Bandwidth(2 * size / median_seconds(stream, copy) / 1e9, size / median_seconds(stream, read) / 1e9)


def median_seconds(stream: CudaStream, queue: Callable[[], None], repeats: int = REPEATS) -> float:
    """Time what `queue` queues, recorded and launched again and again."""
    graph, taken = stream.record(queue), []
    for _ in range(repeats + 2):
        stream.synchronize()
        started = time.perf_counter()
        graph.launch()
        stream.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def reading_kernel() -> str:
    """Write the kernel read_all(source, vectors, target): it reads so many 16-byte vectors and combines them by exclusive or.

    Its threads are as many as are launched; each loads UNROLLED vectors, a grid's width apart, before it uses the first. The result is
    written only if it is a number that random bytes do not give, so that the loads cannot be left out.
    """
    loads = range(UNROLLED)
    address = "\n".join(
        f"""    add.u64 %at, %index, %skip{load};
    setp.lt.u64 %in{load}, %at, %vectors;
    shl.b64 %at, %at, 4;
    add.u64 %at, %source, %at;
    mov.u32 %a{load}, 0; mov.u32 %b{load}, 0; mov.u32 %c{load}, 0; mov.u32 %d{load}, 0;
    @%in{load} ld.global.nc.v4.u32 {{%a{load}, %b{load}, %c{load}, %d{load}}}, [%at];"""
        for load in loads
    )
    combine = "\n".join(f"    xor.b32 %sum, %sum, %{name}{load};" for load in loads for name in "abcd")
    skips = "\n".join(f"    mul.lo.u64 %skip{load}, %width, {load};" for load in loads)
    return f""".version 7.0
.target sm_80
.address_size 64

.visible .entry read_all(.param .u64 source, .param .u64 vectors, .param .u64 target)
{{
    .reg .pred %more, %odd, {", ".join(f"%in{load}" for load in loads)};
    .reg .b32 %sum, %block, %size, %thread, %blocks, {", ".join(f"%{name}{load}" for load in loads for name in "abcd")};
    .reg .b64 %source, %vectors, %target, %index, %wide, %width, %step, %at, {", ".join(f"%skip{load}" for load in loads)};

    ld.param.u64 %source, [source];
    ld.param.u64 %vectors, [vectors];
    ld.param.u64 %target, [target];
    cvta.to.global.u64 %source, %source;
    cvta.to.global.u64 %target, %target;
    mov.u32 %block, %ctaid.x;
    mov.u32 %size, %ntid.x;
    mov.u32 %thread, %tid.x;
    mov.u32 %blocks, %nctaid.x;
    mul.wide.u32 %index, %block, %size;
    cvt.u64.u32 %wide, %thread;
    add.u64 %index, %index, %wide;
    mul.wide.u32 %width, %blocks, %size;
{skips}
    mul.lo.u64 %step, %width, {UNROLLED};
    mov.u32 %sum, 0;
AGAIN:
    setp.lt.u64 %more, %index, %vectors;
    @!%more bra DONE;
{address}
{combine}
    add.u64 %index, %index, %step;
    bra AGAIN;
DONE:
    setp.eq.u32 %odd, %sum, 0x9e3779b9;
    @%odd st.global.u32 [%target], %sum;
    ret;
}}
"""
