"""The device under the TensorRT backend: memory, copies in order, recorded work, what is freed."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from echovlm_edge.runtime.backends.gpu.device import Arena
from echovlm_edge.runtime.backends.gpu.slots import DeviceSlot, DeviceSlots, SlotLayout
from echovlm_edge.runtime.backends.gpu.stretches import Stretch
from echovlm_edge.runtime.bundle.manifest import FileSpec, Part, TensorSpec
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def test_an_arena_goes_there_and_back(gpu: CudaDevice) -> None:
    gpu.enter()
    stream = gpu.new_stream()
    arena = Arena(gpu, stream)
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
        stream.synchronize()
        for region in regions.values():
            region.host[...] = 0
            arena.download(region)
        stream.synchronize()
        for name, region in regions.items():
            np.testing.assert_array_equal(region.host, values[name])


def test_recorded_work_reads_what_lies_there_when_it_is_launched(gpu: CudaDevice) -> None:
    gpu.enter()
    stream = gpu.new_stream()
    source, target, memory = gpu.stage(1024), gpu.stage(1024), gpu.allocate(1024)

    def there_and_back() -> None:
        stream.upload(source.bytes, memory.address)
        stream.download(memory.address, target.bytes)

    graph = stream.record(there_and_back)
    for value in (1, 2, 3):
        source.bytes[:] = value
        graph.launch()
        stream.synchronize()
        assert (target.bytes == value).all()


def test_a_sequences_keys_and_values_move_between_slots_and_memories(gpu: CudaDevice) -> None:
    gpu.enter()
    keys = TensorSpec("keys.0", "float16", ("batch", 4, "context", 128))
    decoder = Part("decoder", "", (FileSpec("decoder.engine", 1, ""),), (keys,))
    layout = SlotLayout.of(decoder, 2, 3, 300)
    slots = DeviceSlots(gpu, gpu.new_stream(), layout, SlotMemory(3, 300, 1 << 22, 1 << 22))
    one, two, three = (DeviceSlot(slots, number) for number in range(3))
    values = np.random.default_rng(0).integers(0, 256, 257 * layout.token_bytes, np.uint8)
    written = slots.staged(257)
    assert not isinstance(written.place, Stretch)
    written.place.staging.bytes[:] = values
    two.write(written)
    two.move(three, 257, 0)
    three.move(one, 257, 100)
    two.write(one.read(257).spilled())
    parked = two.park(257)
    assert not isinstance(parked.place, Stretch)
    np.testing.assert_array_equal(parked.place.staging.bytes, values)


def test_clearing(gpu: CudaDevice) -> None:
    gpu.enter()
    stream = gpu.new_stream()
    block, memory = gpu.stage(4096), gpu.allocate(4096)
    block.bytes[:] = 0xFF
    stream.upload(block.bytes, memory.address)
    stream.clear(memory.address + 256, 1024)
    stream.download(memory.address, block.bytes)
    stream.synchronize()
    assert not block.bytes[256:1280].any() and (np.delete(block.bytes, slice(256, 1280)) == 0xFF).all()


def test_every_thread_can_use_it(gpu: CudaDevice) -> None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            gpu.enter()
            memory, stream = gpu.allocate(1 << 20), gpu.new_stream()
            stream.clear(memory.address, 1 << 20)
            stream.synchronize()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_another_stream_works_while_one_is_recorded(gpu: CudaDevice) -> None:
    gpu.enter()
    recording, other = gpu.new_stream(), gpu.new_stream()
    block, memory = gpu.stage(1024), gpu.allocate(1024)
    block.bytes[:] = 0xFF

    def clear_elsewhere() -> None:
        gpu.enter()
        scratch = gpu.allocate(1 << 20)
        other.clear(scratch.address, 1 << 20)
        other.synchronize()

    def record() -> None:
        recording.clear(memory.address, 1024)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(clear_elsewhere).result(60)
        recording.download(memory.address, block.bytes)

    graph = recording.record(record)
    assert (block.bytes == 0xFF).all()
    graph.launch()
    recording.synchronize()
    assert not block.bytes.any()


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
