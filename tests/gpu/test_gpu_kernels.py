"""The cubins on the GPU against the reference in float64: every variant, odd sizes, unbalanced experts, poisoned memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.gpu_check.bandwidth import measured_bandwidth, median_seconds
from echovlm_edge.plugins.dual_path_moe.cuda.planner import DECODE_TOKENS, Plan, Shape, plan_decode, plan_prefill
from echovlm_edge.plugins.dual_path_moe.reference import (
    DualPathMoEAttributes,
    dequantize_blocks,
    dual_path_moe,
    quantize_blocks,
)
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from tests.gpu.c_launch import c_launch
from tests.gpu.cubins import Kernels, Launcher, Record, embedded_archive, prefill_tiles, read_archive, serving

ACTIVATIONS: tuple[Any, ...] = (np.float16, ml_dtypes.bfloat16)
# Of the output's norm: x, the inner values and the output are rounded once each, and so are scaled weights.
TOLERANCE = (2e-3, 1.6e-2)
POISON = 0xFF  # NaN
SMALL = Shape(256, (384, 128, 64, 64, 64, 64), 2, 0, 0)
MORE_THAN_A_CACHE = 1 << 30  # bytes
PUBLISHED = (3584, (18944, 5632, 1408, 1408, 1408, 1408))


@pytest.fixture(scope="session")
def records(gpu: CudaDevice) -> list[Record]:
    """This GPU's kernels out of the installed plugin: those that TensorRT would launch."""
    archive = embedded_archive()
    if not archive:
        pytest.skip("the plugin library has no kernels in it (make kernels)")
    return serving(read_archive(archive), gpu.compute_capability)


@dataclass(frozen=True)
class Operator:
    """Random weights of an operator, as stored, and as float64 for the reference."""

    shape: Shape
    activation: int
    stored: Mapping[str, NDArray[Any]]
    exact: Mapping[str, NDArray[np.float64]]

    @classmethod
    @cache
    def random(cls, shape: Shape, activation: int) -> Operator:
        """With outputs of about 1."""
        random, half = np.random.default_rng(0), ACTIVATIONS[activation]

        def normal(*size: int) -> NDArray[np.float32]:
            return (random.standard_normal(size, np.float32) / np.sqrt(np.float32(size[-1]))).astype(np.float32)

        small = {
            "router": normal(shape.experts, shape.hidden) * 3,
            "shared_gate": normal(1, shape.hidden),
            "coefficient": normal(2, shape.hidden),
            "coefficient_bias": normal(2),
        }
        stored: dict[str, NDArray[Any]] = {name: value.astype(half) for name, value in small.items()}
        exact = {name: value.astype(np.float64) for name, value in stored.items()}
        for name, size in {
            "gate": (shape.inner, shape.hidden),
            "up": (shape.inner, shape.hidden),
            "down": (shape.hidden, shape.inner),
        }.items():
            if shape.bits:
                packed, scale = quantize_blocks(normal(*size), shape.bits, shape.block_size)
                stored |= {name: packed, f"{name}_scale": scale}
                exact[name] = dequantize_blocks(packed, scale, shape.bits).astype(np.float64)
            else:
                stored[name] = normal(*size).astype(half)
                exact[name] = stored[name].astype(np.float64)
        return cls(shape, activation, stored, exact)

    def expected(self, x: NDArray[Any], norm_topk_prob: bool = False) -> NDArray[np.float64]:
        """The reference."""
        shape = self.shape
        attributes = DualPathMoEAttributes(
            shape.group_widths, shape.top_k, norm_topk_prob, shape.bits, shape.block_size
        )
        return dual_path_moe(x.astype(np.float64), **self.exact, attributes=attributes)  # type: ignore[arg-type, return-value]

    @property
    def nbytes(self) -> int:
        """Of all weights, as stored."""
        return sum(array.nbytes for array in self.stored.values())

    def share_read(self, x: NDArray[Any]) -> float:
        """Of the rows of gate and up, and the columns of down: those that some token of x needs."""
        logits = x.astype(np.float64) @ self.exact["router"].T
        chosen = np.unique(np.argsort(-logits, axis=1)[:, : self.shape.top_k])
        return 1 - (self.shape.experts - len(chosen)) * self.shape.expert / self.shape.inner


class OnDevice:
    """An operator's weights on the GPU, and its kernels."""

    def __init__(self, gpu: CudaDevice, records: list[Record], operator: Operator, tile_tokens: int = 0) -> None:
        from cuda.bindings import driver

        gpu.enter()
        shape = operator.shape
        self.gpu, self.stream, self.operator = gpu, gpu.new_stream(), operator
        tiles = prefill_tiles(records, operator.activation, shape.bits, shape.block_size)
        tile_tokens = tile_tokens or tiles[0]
        self.kernels = Kernels.of(
            records, operator.activation, shape.bits, shape.block_size, shape.experts, tile_tokens
        )
        self.launcher = Launcher(driver, self.kernels, self.stream.handle)
        self.memory = {name: self.put(array) for name, array in operator.stored.items()}
        attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        _, self.multiprocessors = driver.cuDeviceGetAttribute(attribute, 0)

    def put(self, array: NDArray[Any]) -> Any:
        """A copy on the GPU."""
        block = self.gpu.stage(array.nbytes)
        block.bytes[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        memory = self.gpu.allocate(array.nbytes)
        self.stream.upload(block.bytes, memory.address)
        self.stream.synchronize()
        return memory

    def plan(self, tokens: int, prefill: bool, norm_topk_prob: bool = False) -> Plan:
        """The plan, by the kernels for long prompts or for few tokens."""
        if prefill:
            return plan_prefill(tokens, self.operator.shape, self.multiprocessors, self.kernels.tile, norm_topk_prob)
        return plan_decode(tokens, self.operator.shape, self.multiprocessors, self.kernels.tile, norm_topk_prob)

    def run(
        self, x: NDArray[Any], plan: Plan, launch: Callable[[dict[str, int]], None] | None = None
    ) -> NDArray[np.float64]:
        """The output, over poisoned memory; `launch` queues it in the plan's place, over addresses by name."""
        output, workspace = np.empty_like(x), np.full(plan.workspace, POISON, np.uint8)
        output.view(np.uint8)[...] = POISON
        x_there, y_there, workspace_there = self.put(x), self.put(output), self.put(workspace)
        addresses = {name: memory.address for name, memory in self.memory.items()}
        addresses |= {"x": x_there.address, "y": y_there.address}
        if launch:
            launch(addresses | {"workspace": workspace_there.address})
        else:
            self.launcher.run(plan, addresses, workspace_there.address)
        block = self.gpu.stage(output.nbytes)
        self.stream.download(y_there.address, block.bytes)
        self.stream.synchronize()
        return block.bytes.view(x.dtype).reshape(x.shape).astype(np.float64)

    def seconds(self, x: NDArray[Any], plan: Plan) -> float:
        """Of one layer: the median over recorded runs of many, each with weights of its own, which no cache holds."""
        layers = [self.memory]
        while len(layers) * self.operator.nbytes < MORE_THAN_A_CACHE:
            layers.append({name: self.put(array) for name, array in self.operator.stored.items()})
        x_there, y_there, workspace = self.put(x), self.put(x), self.gpu.allocate(plan.workspace)

        def all_layers() -> None:
            for layer in layers:
                addresses = {name: memory.address for name, memory in layer.items()}
                addresses |= {"x": x_there.address, "y": y_there.address}
                self.launcher.run(plan, addresses, workspace.address)

        return median_seconds(self.stream, all_layers) / len(layers)


def inputs(tokens: int, shape: Shape, activation: int, seed: int = 1) -> NDArray[Any]:
    """Normal x."""
    return (
        np.random.default_rng(seed).standard_normal((tokens, shape.hidden), np.float32).astype(ACTIVATIONS[activation])
    )


def relative_error(actual: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Return the relative error of the norm; NaN where poisoned memory was not overwritten."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("activation", [0, 1], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("bits", "block"), [(0, 0), (4, 64), (4, 128)], ids=["float", "int4-64", "int4-128"])
def test_small_shapes(gpu: CudaDevice, records: list[Record], activation: int, bits: int, block: int) -> None:
    widths = tuple(width if not block else -(-width // block) * block for width in SMALL.group_widths)
    shape = Shape(SMALL.hidden, widths, SMALL.top_k, bits, block)
    operator = Operator.random(shape, activation)
    tiles = prefill_tiles(records, activation, bits, block)
    assert tiles
    for tile_tokens in tiles:
        device = OnDevice(gpu, records, operator, tile_tokens)
        for tokens in (1, 3, DECODE_TOKENS, DECODE_TOKENS + 1, 65, 130):
            x = inputs(tokens, shape, activation)
            for prefill in (True, False) if tokens <= DECODE_TOKENS else (True,):
                plan = device.plan(tokens, prefill)
                actual, again = device.run(x, plan), device.run(x, plan)
                assert relative_error(actual, operator.expected(x)) < TOLERANCE[activation], (
                    tile_tokens,
                    tokens,
                    prefill,
                )
                np.testing.assert_array_equal(actual, again, "not the same on every run")


@pytest.mark.parametrize("activation", [0, 1], ids=["fp16", "bf16"])
@pytest.mark.parametrize(("bits", "block"), [(0, 0), (4, 64), (4, 128)], ids=["float", "int4-64", "int4-128"])
def test_small_calls_by_the_library(
    gpu: CudaDevice, records: list[Record], activation: int, bits: int, block: int
) -> None:
    """The library's launches are those of the plan, to the bit."""
    widths = tuple(width if not block else -(-width // block) * block for width in SMALL.group_widths)
    shape = Shape(SMALL.hidden, widths, SMALL.top_k, bits, block)
    operator = Operator.random(shape, activation)
    for tile_tokens in prefill_tiles(records, activation, bits, block):
        device = OnDevice(gpu, records, operator, tile_tokens)
        for tokens in (1, DECODE_TOKENS, DECODE_TOKENS + 1, 130):
            x = inputs(tokens, shape, activation)
            plan = device.plan(tokens, tokens > DECODE_TOKENS)

            def by_library(
                addresses: dict[str, int],
                tokens: int = tokens,
                tile_tokens: int = tile_tokens,
                stream: int = int(device.stream.handle),
            ) -> None:
                c_launch(shape, activation, tokens, tile_tokens, addresses, stream)

            np.testing.assert_array_equal(device.run(x, plan, by_library), device.run(x, plan))


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("norm_topk_prob", [False, True])
def test_small_routing(gpu: CudaDevice, records: list[Record], top_k: int, norm_topk_prob: bool) -> None:
    """All tokens to the same experts, so that others have none; and rescaled probabilities."""
    shape = Shape(SMALL.hidden, SMALL.group_widths, top_k, 0, 0)
    operator = Operator.random(shape, 0)
    device = OnDevice(gpu, records, operator)
    same = np.repeat(inputs(1, shape, 0), 40, axis=0)
    for x, prefill in ((same, True), (same[:9], False), (inputs(40, shape, 0, 2), True)):
        actual = device.run(x, device.plan(len(x), prefill, norm_topk_prob))
        assert relative_error(actual, operator.expected(x, norm_topk_prob)) < TOLERANCE[0]


@pytest.mark.parametrize(("bits", "block"), [(4, 128), (0, 0)], ids=["int4", "fp16"])
def test_the_published_width(
    gpu: CudaDevice, records: list[Record], bits: int, block: int, note: Callable[[str], None]
) -> None:
    hidden, widths = PUBLISHED
    shape = Shape(hidden, widths, 2, bits, block)
    operator = Operator.random(shape, 0)
    bandwidth = measured_bandwidth(gpu, MORE_THAN_A_CACHE)
    note(
        f"this GPU copies {bandwidth.copy_gbps:.0f} GB/s, counting bytes read and written, and reads {bandwidth.read_gbps:.0f}"
    )
    for tile_tokens, counts in [
        (0, (1, 8, 16)),
        *((tile, (32, 64, 128, 1024)) for tile in prefill_tiles(records, 0, bits, block)),
    ]:
        device = OnDevice(gpu, records, operator, tile_tokens)
        for tokens in counts:
            prefill = tokens > DECODE_TOKENS
            x, plan = inputs(tokens, shape, 0), device.plan(tokens, prefill)
            assert relative_error(device.run(x, plan), operator.expected(x)) < TOLERANCE[0], tokens
            seconds = device.seconds(x, plan)
            read = operator.nbytes * operator.share_read(x)
            work = 6 * tokens * hidden * (shape.dense + shape.shared + shape.top_k * shape.expert)
            tile = f" in tiles of {tile_tokens}" if prefill else ""
            note(
                f"{tokens} tokens{tile}: {seconds * 1e6:.0f} us, {read / seconds / 1e9:.0f} GB/s of weights, "
                f"{work / seconds / 1e12:.1f} TFLOP/s"
            )
