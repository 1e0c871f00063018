"""Files whose labels lie, whose attributes are missing or absurd: each shows its picture, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.imaging.dicom.reading import decode, read_header

FOLDER = Path(__file__).parents[1] / "cases" / "dicom"
CASES = json.loads((FOLDER / "cases.json").read_text())
LIMITS = 64_000_000, 64


@pytest.mark.parametrize("file", CASES)
def test_a_case(file: str) -> None:
    case, image = CASES[file], ImageInput((FOLDER / file).read_bytes())
    if "refused" in case:
        with pytest.raises(UserError) as refused:
            decode(image, *LIMITS)
        assert all(word in str(refused.value) for word in case["refused"]), str(refused.value)
        assert "damaged" not in str(refused.value)
        return
    ((pixels, source),) = decode(image, *LIMITS)
    expected = np.asarray(Image.open(FOLDER / case["picture"]).convert("RGB")).astype(int)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= case["tolerance"]
    assert source.index == case.get("frame", 0)
    header = read_header(image, *LIMITS)
    assert (header.height, header.width, len(header.frames)) == (*pixels.shape[:2], 1)
