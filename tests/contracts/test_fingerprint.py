"""Fingerprints: pictures that look alike differ in few bits, others in many."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from demo.simulate import simulate
from echovlm_edge.runtime.contracts.fingerprint import distance, fingerprint_of

ALIKE = 8  # bits of 256, as report.proto says


def picture(seed: int) -> NDArray[np.uint8]:
    return np.repeat(simulate(seed).image[..., None], 3, axis=2)


def compressed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def with_calipers(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    marked = pixels.copy()
    for row, column in ((100, 90), (150, 120)):
        marked[row : row + 10, column + 4 : column + 6] = marked[row + 4 : row + 6, column : column + 10] = 255
    return marked


@pytest.mark.parametrize("seed", range(8))
def test_a_compressed_or_measured_copy_is_alike_and_another_picture_is_not(seed: int) -> None:
    plain = picture(seed)
    print_of = fingerprint_of(plain)
    assert len(print_of) == 32
    assert distance(print_of, fingerprint_of(compressed(plain))) <= ALIKE
    assert distance(print_of, fingerprint_of(with_calipers(plain))) <= ALIKE
    assert all(distance(print_of, fingerprint_of(picture(other))) > ALIKE for other in range(8) if other != seed)


def test_a_black_picture_and_its_noise_are_alike() -> None:
    noise = np.random.default_rng(0).integers(0, 3, (64, 64, 3), dtype=np.uint8)
    assert distance(fingerprint_of(np.zeros((64, 64, 3), np.uint8)), fingerprint_of(noise)) <= ALIKE


def test_a_tiny_picture_has_none() -> None:
    assert fingerprint_of(np.zeros((10, 200, 3), np.uint8)) == b""
