"""The head's product with 8-bit weights on the GPU, by the plugin library's launcher, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.gpu_check.bandwidth import measured_bandwidth, median_seconds
from echovlm_edge.plugins.dual_path_moe.reference import dequantize_blocks
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from tests.gpu.c_launch import c_launch_linear
from tests.gpu.cubins import has_kernels

VOCABULARY, HIDDEN = 152064, 3584  # of the published model


@pytest.mark.parametrize(("inputs", "outputs", "block"), [(256, 200, 64), (384, 33, 128)])
def test_every_row_and_token(gpu: CudaDevice, inputs: int, outputs: int, block: int) -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (outputs, inputs), np.int8)
    scale = random.uniform(0.5, 2, (outputs, inputs // block)).astype(np.float32)
    x = random.standard_normal((17, inputs), np.float32)
    expected = x.astype(np.float16).astype(np.float64) @ dequantize_blocks(weight, scale, 8).astype(np.float64).T
    product = _Product(gpu, weight, scale)
    for tokens in (1, 16, 17):
        actual = product(x[:tokens])
        assert np.abs(actual - expected[:tokens]).max() < 1e-5 * np.abs(expected).max()
        np.testing.assert_array_equal(actual[:1], product(x[:1]))


def test_the_published_head(gpu: CudaDevice, note: Callable[[str], None]) -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (VOCABULARY, HIDDEN), np.int8)
    scale = np.full((VOCABULARY, HIDDEN // 128), 0.01, np.float32)
    product = _Product(gpu, weight, scale)
    reads = measured_bandwidth(gpu, weight.nbytes).read_gbps
    for tokens in (1, 8, 64):
        seconds = product.seconds(np.ones((tokens, HIDDEN), np.float32))
        speed = (weight.nbytes + scale.nbytes) / seconds / 1e9
        note(f"the head in 8 bits, {tokens} tokens: {seconds * 1e6:.0f} us, {speed:.0f} GB/s of {reads:.0f}")


class _Product:
    """A weight on the GPU."""

    def __init__(self, gpu: CudaDevice, weight: NDArray[Any], scale: NDArray[Any]) -> None:
        if not has_kernels(gpu.compute_capability):
            pytest.skip("the plugin library has no kernels for this GPU (make kernels)")
        gpu.enter()
        self.gpu, self.stream, self.block = gpu, gpu.new_stream(), weight.shape[1] // scale.shape[1]
        self.outputs, self.inputs = weight.shape
        self.weight, self.scale = self._put(weight), self._put(scale)

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        """The product, over poisoned memory."""
        there, y = self._put(x), self._put(np.full((len(x), self.outputs), np.nan, np.float32))
        self._launch(there.address, y.address, len(x))
        block = self.gpu.stage(4 * len(x) * self.outputs)
        self.stream.download(y.address, block.bytes)
        self.stream.synchronize()
        return block.bytes.view(np.float32).reshape(len(x), self.outputs).copy()

    def seconds(self, x: NDArray[Any]) -> float:
        """Of one product; the published weight is larger than a cache."""
        there, y = self._put(x), self.gpu.allocate(4 * len(x) * self.outputs)
        return median_seconds(self.stream, lambda: self._launch(there.address, y.address, len(x)))

    def _launch(self, x: int, y: int, tokens: int) -> None:
        sizes = (8, self.block, tokens, self.inputs, self.outputs)
        c_launch_linear(sizes, (x, self.weight.address, self.scale.address), y, int(self.stream.handle))

    def _put(self, array: NDArray[Any]) -> Any:
        block = self.gpu.stage(array.nbytes)
        block.bytes[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        memory = self.gpu.allocate(array.nbytes)
        self.stream.upload(block.bytes, memory.address)
        self.stream.synchronize()
        return memory
