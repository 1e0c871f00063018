"""The device under the TensorRT backend: memory, copies in order, recorded work, what is freed."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from echovlm_edge.runtime.backends.cuda_driver import CudaDevice
from echovlm_edge.runtime.backends.device import Arena
from echovlm_edge.runtime.errors import NotPossibleHere


def test_an_arena_goes_there_and_back(gpu: CudaDevice) -> None:
    gpu.enter()
    arena = Arena(gpu)
    shapes = {"a": ("float16", (3, 5)), "b": ("int64", (7,)), "c": ("bool", (2, 2))}
    for seed in range(3):  # larger each time
        random = np.random.default_rng(seed)
        regions = arena.cut(
            {name: (dtype, (*shape[:-1], shape[-1] * (1 + 1000 * seed))) for name, (dtype, shape) in shapes.items()}
        )
        values = {name: random.integers(0, 2, region.host.shape) for name, region in regions.items()}
        for name, region in regions.items():
            region.host[...] = values[name]
        arena.upload()
        gpu.synchronize()
        for region in regions.values():
            region.host[...] = 0
            arena.download(region)
        gpu.synchronize()
        for name, region in regions.items():
            np.testing.assert_array_equal(region.host, values[name])


def test_recorded_work_reads_what_lies_there_when_it_is_launched(gpu: CudaDevice) -> None:
    gpu.enter()
    source, target, memory = gpu.stage(1024), gpu.stage(1024), gpu.allocate(1024)

    def there_and_back() -> None:
        gpu.upload(source.bytes, memory.address)
        gpu.download(memory.address, target.bytes)

    graph = gpu.record(there_and_back)
    for value in (1, 2, 3):
        source.bytes[:] = value
        graph.launch()
        gpu.synchronize()
        assert (target.bytes == value).all()


def test_clearing(gpu: CudaDevice) -> None:
    gpu.enter()
    block, memory = gpu.stage(4096), gpu.allocate(4096)
    block.bytes[:] = 0xFF
    gpu.upload(block.bytes, memory.address)
    gpu.clear(memory.address + 256, 1024)
    gpu.download(memory.address, block.bytes)
    gpu.synchronize()
    assert not block.bytes[256:1280].any() and (np.delete(block.bytes, slice(256, 1280)) == 0xFF).all()


def test_every_thread_can_use_it(gpu: CudaDevice) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            gpu.enter()
            memory = gpu.allocate(1 << 20)
            gpu.clear(memory.address, 1 << 20)
            gpu.synchronize()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_memory_comes_back(gpu: CudaDevice) -> None:
    gpu.enter()
    before = gpu.free_bytes()
    memory = gpu.allocate(256 << 20)
    assert gpu.free_bytes() < before
    del memory
    gc.collect()
    assert gpu.free_bytes() >= before - (32 << 20)  # another program may have taken some


def test_more_than_there_is_is_refused(gpu: CudaDevice) -> None:
    gpu.enter()
    with pytest.raises(NotPossibleHere, match="GB of memory left"):
        gpu.allocate(1 << 50)
