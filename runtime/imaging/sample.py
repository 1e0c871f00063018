"""A real ultrasound image for trials: the cardiac frame that ships with pydicom."""

from __future__ import annotations

from pathlib import Path

from pydicom.data import get_testdata_file

from echovlm_edge.runtime.contracts.request import ImageInput

SAMPLE = "examples_rgb_color.dcm"


def sample_image() -> ImageInput:
    """Return the file, 320 x 240 pixels."""
    path = get_testdata_file(SAMPLE, download=False)
    assert isinstance(path, str), "pydicom ships it since version 1.0"
    return ImageInput(Path(path).read_bytes(), name=SAMPLE)
