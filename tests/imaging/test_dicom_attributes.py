"""Attributes of DICOM files that are missing, empty or absurd, and those that say how grey is shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, Source, Window
from echovlm_edge.runtime.imaging.dicom.grey import UNUSABLE_WINDOW
from echovlm_edge.runtime.imaging.dicom.reading import decode
from tests.support.dicom_files import saved, ultrasound

LIMITS = 64_000_000, 64
GREY = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 10 + 7
COLOUR = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def shown(dataset: FileDataset, **fields: object) -> tuple[np.ndarray, Source]:
    ((pixels, source),) = decode(ImageInput(saved(dataset), **fields), *LIMITS)  # type: ignore[arg-type]
    return pixels, source


def grey(dataset: FileDataset) -> np.ndarray:
    pixels, _ = shown(dataset)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def item(**attributes: object) -> Dataset:
    made = Dataset()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


ABSURD = {
    "WindowCenter": [None, "", ["40", ""]],
    "WindowWidth": [None, "0", "-5"],
    "RescaleSlope": [None, "0"],
    "RescaleIntercept": [None],
    "VOILUTSequence": [[], [item()], [item(LUTDescriptor=[0, 0, 0])], None],
    "ModalityLUTSequence": [[], [item()], None],
    "VOILUTFunction": [None, "LINEAR", "NONSENSE"],
    "PixelRepresentation": [None, 7],
    "SamplesPerPixel": [None, 0, 9],
    "BitsStored": [None, 0, 99],
    "HighBit": [None, 0, 99],
    "PlanarConfiguration": [None, 5],
    "NumberOfFrames": [None, "0", "-1", "1"],
    "PixelAspectRatio": [None, ["0", "0"], ["1", "1"], ["1"]],
    "PresentationLUTShape": [None, "IDENTITY", "NONSENSE"],
    "SequenceOfUltrasoundRegions": [None, [], [item()], [item(RegionSpatialFormat=1, RegionDataType=1)]],
    "RepresentativeFrameNumber": [None, 0, 60000],
    "StartTrim": [None, "0", "-4"],
    "PerFrameFunctionalGroupsSequence": [None, [], [item()]],
    "SharedFunctionalGroupsSequence": [None, [], [item(FrameVOILUTSequence=[])], [item(FrameVOILUTSequence=[item()])]],
    "PatientName": [None, "\\\\\\"],
    "SpecificCharacterSet": [None, "NONSENSE"],
}


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from(sorted(ABSURD)), st.integers(0, 9), max_size=8),
    st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
    st.sampled_from(["MONOCHROME2", "RGB"]),
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_meant_is_the_default(chosen: dict[str, int], syntax: object, photometric: str) -> None:
    dataset = ultrasound(GREY if photometric == "MONOCHROME2" else COLOUR, photometric, syntax)  # type: ignore[arg-type]
    for name, which in chosen.items():
        value = ABSURD[name][which % len(ABSURD[name])]
        setattr(dataset, name, value)
    pixels, source = shown(dataset)
    expected = np.repeat(GREY[..., None], 3, axis=2) if photometric == "MONOCHROME2" else COLOUR
    np.testing.assert_array_equal(pixels, expected)
    assert set(source.notes) <= {UNUSABLE_WINDOW} and source.window is None


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"PhotometricInterpretation": "YBR_PARTIAL_422"}, "photometric interpretation YBR_PARTIAL_422"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "photometric interpretation YBR_PARTIAL_420"),
        ({"PhotometricInterpretation": "CMYK"}, "photometric interpretation CMYK"),
        ({"PhotometricInterpretation": "ARGB"}, "photometric interpretation ARGB"),
        ({"PhotometricInterpretation": "HSV"}, "photometric interpretation HSV"),
        ({"PhotometricInterpretation": None}, "lacks the DICOM attribute PhotometricInterpretation"),
        ({"Rows": None}, "lacks the DICOM attribute Rows"),
        ({"Columns": 0}, "DICOM attribute Columns that cannot be meant"),
        ({"BitsAllocated": 13}, "13 BitsAllocated"),
        ({"SamplesPerPixel": 1}, "1 SamplesPerPixel, which RGB cannot have"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(attributes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence) as refused:
        shown(ultrasound(COLOUR, **attributes))
    assert "damaged" not in str(refused.value)


@pytest.mark.parametrize("name", ["Rows", "Columns", "BitsAllocated", "PhotometricInterpretation", "PixelData"])
def test_what_is_missing_is_named(name: str) -> None:
    dataset = ultrasound(COLOUR)
    dataset["PixelData"].VR = "OB"
    delattr(dataset, name)
    with pytest.raises(InvalidInput, match=f"lacks the DICOM attribute {name}"):
        shown(dataset)


def test_the_window_that_was_applied_is_told() -> None:
    assert shown(ultrasound(GREY, "MONOCHROME2"))[1].window is None
    windowed = ultrasound(
        DEEP, "MONOCHROME2", WindowCenter="700", WindowWidth="801", RescaleSlope="2", RescaleIntercept="-9"
    )
    pixels, source = shown(windowed)
    assert source.window == Window(700, 801)
    np.testing.assert_array_equal(pixels[..., 0], ramp(DEEP * 2.0 - 9, 299.5, 1099.5))
    pixels, source = shown(ultrasound(DEEP, "MONOCHROME2", RescaleSlope="2", RescaleIntercept="-9"))
    low, high = DEEP.min() * 2 - 9, DEEP.max() * 2 - 9
    assert source.window == Window((low + high) / 2, high - low)
    np.testing.assert_array_equal(pixels[..., 0], ramp(DEEP, DEEP.min(), DEEP.max()))


def test_the_first_window_that_can_be_meant_is_applied() -> None:
    several = ultrasound(DEEP, "MONOCHROME2", WindowCenter=["40", "700"], WindowWidth=["0", "801"])
    assert shown(several)[1].window == Window(700, 801)
    unusable = ultrasound(DEEP, "MONOCHROME2", WindowCenter="40", WindowWidth="0")
    pixels, source = shown(unusable)
    assert source.notes == (UNUSABLE_WINDOW,)
    np.testing.assert_array_equal(pixels[..., 0], ramp(DEEP, DEEP.min(), DEEP.max()))


def test_a_window_narrower_than_one_unit() -> None:
    """LINEAR is defined from a width of 1 on (PS3.3 C.11.2.1.2.1); in small units the window itself is meant."""
    narrow = ultrasound(
        DEEP, "MONOCHROME2", WindowCenter="0.5", WindowWidth="0.8", RescaleSlope="0.001", RescaleIntercept="0"
    )
    np.testing.assert_array_equal(grey(narrow), ramp(DEEP * 0.001, 0.1, 0.9))


def test_the_range_is_that_of_all_frames_chosen() -> None:
    cine = np.stack([DEEP, DEEP + 5000, DEEP + 9000])
    data = saved(ultrasound(cine, "MONOCHROME2", NumberOfFrames=3))
    found = decode(ImageInput(data, selection=FrameSelection((0, 2))), *LIMITS)
    for (pixels, source), frame in zip(found, (DEEP, DEEP + 9000), strict=True):
        np.testing.assert_array_equal(pixels[..., 0], ramp(frame, DEEP.min(), DEEP.max() + 9000))
        assert source.window == found[0][1].window


def test_functional_groups() -> None:
    """PS3.3 C.7.6.16: of a frame before those of all frames, and these before the image's own."""
    cine = np.stack([DEEP, DEEP])
    dataset = ultrasound(cine, "MONOCHROME2", NumberOfFrames=2, WindowCenter="1", WindowWidth="2")
    window = item(WindowCenter="500", WindowWidth="401")
    dataset.SharedFunctionalGroupsSequence = [
        item(
            FrameVOILUTSequence=[window],
            PixelValueTransformationSequence=[item(RescaleSlope="2", RescaleIntercept="1")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(),
        item(FrameVOILUTSequence=[item(WindowCenter="900", WindowWidth="301")]),
    ]
    (first, _), (second, source) = decode(ImageInput(saved(dataset), selection=FrameSelection((0, 1))), *LIMITS)
    np.testing.assert_array_equal(first[..., 0], ramp(DEEP * 2.0 + 1, 299.5, 699.5))
    np.testing.assert_array_equal(second[..., 0], ramp(DEEP * 2.0 + 1, 749.5, 1049.5))
    assert source.window == Window(900, 301)


def table(entries: list[int], first: int, bits: int) -> Dataset:
    made = Dataset()
    made.add_new(0x00283002, "US", [len(entries), first & 0xFFFF, bits])
    made.add_new(0x00283006, "US", entries)
    return made


def test_lookup_tables() -> None:
    entries = [(number * 37) % 4096 for number in range(300)]
    values = np.add.outer(np.arange(32) * 9, np.arange(32) * 3).astype(np.int16) - 100
    dataset = ultrasound(values, "MONOCHROME2", VOILUTSequence=[table(entries, -50, 12)])
    expected = np.array(entries)[np.clip(values + 50, 0, 299)]
    np.testing.assert_array_equal(grey(dataset), ramp(expected, 0, 4095))
    modality = ultrasound(DEEP, "MONOCHROME2", ModalityLUTSequence=[table(entries, 20, 16)])
    units = np.array(entries)[np.clip(DEEP.astype(int) - 20, 0, 299)]
    np.testing.assert_array_equal(grey(modality), ramp(units, units.min(), units.max()))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE", None])
def test_grey_is_inverted_once(photometric: str, shape: str | None) -> None:
    dataset = ultrasound(GREY, photometric, PresentationLUTShape=shape)
    inverted = photometric == "MONOCHROME1" or shape == "INVERSE"
    np.testing.assert_array_equal(grey(dataset), 255 - GREY if inverted else GREY)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 60010])
def test_padding_is_black_and_out_of_the_range(photometric: str, limit: int | None) -> None:
    values = DEEP.copy()
    values[:4] = 60000
    values[4:6] = 60010 if limit else 60000
    dataset = ultrasound(values, photometric, PixelPaddingValue=60000)
    if limit:
        dataset.PixelPaddingRangeLimit = limit
    pixels, _ = shown(dataset)
    picture = ramp(DEEP, DEEP[6:].min(), DEEP[6:].max())[6:]
    assert (pixels[:6] == 0).all()
    np.testing.assert_array_equal(pixels[6:, :, 0], 255 - picture if photometric == "MONOCHROME1" else picture)


def test_padding_of_signed_pixels() -> None:
    values = DEEP.astype(np.int16)
    values[:4] = -2000
    dataset = ultrasound(values, "MONOCHROME2", PixelPaddingValue=-2000)
    dataset["PixelPaddingValue"].VR = "SS"
    pixels = grey(dataset)
    assert (pixels[:4] == 0).all()
    np.testing.assert_array_equal(pixels[4:], ramp(DEEP, DEEP[4:].min(), DEEP[4:].max())[4:])
    everywhere = ultrasound(np.full((32, 32), 9, np.uint16), "MONOCHROME2", PixelPaddingValue=9)
    assert (grey(everywhere) == 0).all()


def test_many_bits() -> None:
    values = (GREY.astype(np.uint32) << 20) + 3
    np.testing.assert_array_equal(grey(ultrasound(values, "MONOCHROME2")), ramp(values, values.min(), values.max()))
    bits = GREY > 100
    dataset = ultrasound(GREY, "MONOCHROME2", BitsAllocated=1, BitsStored=1, HighBit=0)
    dataset.PixelData = np.packbits(bits, bitorder="little").tobytes()
    np.testing.assert_array_equal(grey(dataset), bits * 255)


@pytest.mark.parametrize("kind", ["in words", "short", "absent"])
def test_palettes_that_are_not_as_described(kind: str) -> None:
    dataset = ultrasound(GREY, "PALETTE COLOR")
    for number in (1, 2, 3):
        dataset.add_new(0x00281100 + number, "US", [256, 0, 16])
        entries = np.arange(100 if kind == "short" else 256) * (256 if kind == "short" else 1)
        if kind != "absent" or number != 2:
            dataset.add_new(0x00281200 + number, "OW", entries.astype("<u2").tobytes())
    if kind == "absent":
        with pytest.raises(InvalidInput, match="GreenPaletteColorLookupTableData"):
            shown(dataset)
        return
    pixels, source = shown(dataset)
    np.testing.assert_array_equal(pixels[..., 0], np.minimum(GREY, 99) if kind == "short" else GREY)
    assert len(source.notes) == 1
