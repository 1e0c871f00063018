"""Simulated studies: what a sonographer would see on them, the files they are written to, and the command."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import UltrasoundImageStorage
from scipy import ndimage

from demo import simulate as command
from demo.acquisition import DYNAMIC_RANGE_DB, acquire, geometry
from demo.annotation import FRAME, LEFT, PICTURE, TOP
from demo.dicom_writer import dicom_bytes
from demo.simulate import Study, draw_finding, picture, simulate
from demo.tissue import Tissue
from demo.truth import CATALOGUE, Finding, Probe, Side, Truth
from echovlm_edge.runtime.image import decode_image
from echovlm_edge.runtime.request import ImageInput
from echovlm_edge.runtime.tasks import Region

EVERY_FINDING = [(region, finding) for region, plan in CATALOGUE.items() for finding in plan.findings]
# A renal cyst is left out: it merges with the dark pyramids beside it.
MEASURABLE = [
    (Region.BREAST, "simple cyst"),
    (Region.THYROID, "simple cyst"),
    (Region.LIVER, "simple cyst"),
    (Region.GYNECOLOGY, "ovarian cyst"),
]


@cache
def studies(region: Region, kind: str) -> tuple[Study, ...]:
    finding = next(entry for entry in CATALOGUE[region].findings if entry.kind == kind)
    made = []
    for seed in range(12):
        random = np.random.default_rng([seed, 77])
        truth = draw_finding(region, finding, random)
        made.append(Study(seed, picture(truth, random), truth))
    return tuple(made)


def gray(study: Study) -> NDArray[np.float64]:
    """The picture inside the annotations."""
    return study.image[TOP : TOP + PICTURE, LEFT : LEFT + PICTURE].astype(float)


def fluid(study: Study) -> list[tuple[slice, slice]]:
    """Boxes of the dark areas that do not touch the picture's edge, the largest first."""
    smooth = ndimage.gaussian_filter(gray(study), 1.2)
    labels, _ = ndimage.label(smooth < 45)
    boxes = [box for box in ndimage.find_objects(labels) if all(s.start > 0 and s.stop < PICTURE for s in box)]
    return sorted(boxes, key=lambda box: -(box[0].stop - box[0].start) * (box[1].stop - box[1].start))


def test_a_seed_gives_the_same_study_and_another_a_different_one() -> None:
    assert simulate(7).truth == simulate(7).truth and (simulate(7).image == simulate(7).image).all()
    assert (simulate(7).image != simulate(8).image).mean() > 0.3


def test_every_finding_on_every_side_comes_up() -> None:
    truths = [command.draw_truth(np.random.default_rng(seed)) for seed in range(3000)]
    shown = {(truth.region, truth.kind, truth.side) for truth in truths}
    assert shown == {
        (region, finding.kind, side)
        for region, finding in EVERY_FINDING
        for side in (Side if CATALOGUE[region].has_side else (None,))
    }
    for truth in truths:
        sizes = next(f for r, f in EVERY_FINDING if (r, f.kind) == (truth.region, truth.kind)).size_mm
        assert (truth.size_mm is None) is (sizes is None)
        assert sizes is None or (truth.size_mm is not None and sizes[0] <= truth.size_mm <= sizes[1])


@pytest.mark.parametrize(("region", "finding"), EVERY_FINDING, ids=lambda value: getattr(value, "kind", None))
def test_every_picture_is_exposed_like_one(region: Region, finding: Finding) -> None:
    """Neither black nor white, and gray levels that spread as speckle's do."""
    for study in studies(region, finding.kind)[:4]:
        inside = gray(study)[gray(study) > 0]
        assert 40 < inside.mean() < 200 and inside.std() > 15
        assert (inside > 250).mean() < 0.1


@pytest.mark.parametrize(("region", "kind"), MEASURABLE)
def test_a_cyst_measures_what_its_truth_says(region: Region, kind: str) -> None:
    """The dark area that comes nearest to the stated size: a little smaller, since the beam's width fills its edge."""
    errors = []
    for study in studies(region, kind):
        assert study.truth.size_mm is not None
        extents = [max(s.stop - s.start for s in box) * study.truth.mm_per_pixel for box in fluid(study)]
        errors.append(min(abs(extent / study.truth.size_mm - 1) for extent in extents))
    assert np.median(errors) < 0.14 and max(errors) < 0.25


def test_an_irregular_nodule_is_as_large_as_its_truth_says() -> None:
    """Its outline has lobes, yet its largest diameter is the size."""
    points = geometry(Probe.LINEAR, 40)
    lobes = np.array([0.04, -0.12, 0.09, 0.1], np.float32)
    tissue = Tissue(points.x, points.z, Probe.LINEAR, np.random.default_rng(0))
    inside = tissue.ellipse((0, 20), (8, 6.5), lobes=lobes, exact=True) > 0.5
    at = np.column_stack([points.x[inside], points.z[inside]])[::5]
    assert np.hypot(*(at[:, None] - at[None]).transpose(2, 0, 1)).max() == pytest.approx(16, abs=0.6)


def behind(study: Study, box: tuple[slice, slice]) -> float:
    """Brightness below a box against beside that, at the same depth."""
    middle, half = (box[1].start + box[1].stop) // 2, max(3, (box[1].stop - box[1].start) // 5)
    rows = gray(study)[box[0].stop + 6 : box[0].stop + 30]
    beside = np.concatenate(
        [rows[:, max(0, box[1].start - 40) : box[1].start], rows[:, box[1].stop : box[1].stop + 40]], 1
    )
    return float(rows[:, middle - half : middle + half].mean() - beside.mean())


def test_fluid_is_followed_by_enhancement() -> None:
    enhancements = [behind(study, fluid(study)[0]) for study in studies(Region.LIVER, "simple cyst")]
    assert np.median(enhancements) > 6


@pytest.mark.parametrize(("region", "kind"), [(Region.BREAST, "calcification"), (Region.KIDNEY, "stone")])
def test_calcium_and_stone_leave_a_shadow(region: Region, kind: str) -> None:
    """Somewhere the picture is dark all the way down; without the finding it is not."""
    for name, has_shadow in ((kind, True), ("normal", False)):
        for study in studies(region, name):
            deepest = ndimage.uniform_filter(gray(study), (12, 8))[int(0.8 * PICTURE), 60:190]
            assert bool(deepest.min() < 0.45 * np.median(deepest)) is has_shadow


def homogeneous(depth_mm: int) -> NDArray[np.float64]:
    """Levels in dB of parenchyma without a structure, seen by a linear probe."""
    truth = Truth(Region.BREAST, "normal", Side.LEFT, None, "", "", Probe.LINEAR, depth_mm, depth_mm / (PICTURE - 1))
    points = geometry(truth.probe, depth_mm)
    tissue = Tissue(points.x, points.z, truth.probe, np.random.default_rng(1))
    frame = acquire(tissue, truth, np.random.default_rng(2))
    return frame[TOP : TOP + PICTURE, LEFT : LEFT + PICTURE] * DYNAMIC_RANGE_DB / 255


def test_speckle_is_fully_developed() -> None:
    """The log of a Rayleigh variable spreads by 5.57 dB; scan conversion between beams takes some of that."""
    assert 4.3 < homogeneous(40)[80:160].std() < 6.0


def test_gain_makes_up_for_depth() -> None:
    """TGC keeps even tissue evenly bright to within its sliders' 3 dB, over 17 dB of attenuation."""
    levels = homogeneous(40).mean(1)
    assert np.abs(levels[20:60].mean() - levels[190:230].mean()) < 4


def test_speckle_widens_away_from_the_focus() -> None:
    def width(rows: NDArray[np.float64]) -> float:
        centred = rows - rows.mean()
        return float((centred[:, 4:] * centred[:, :-4]).mean() / (centred**2).mean())

    levels = homogeneous(40)
    focus = int(0.45 * PICTURE)
    assert width(levels[-40:]) > width(levels[focus - 20 : focus + 20]) + 0.1


def test_the_ruler_tells_the_scale() -> None:
    for seed in range(20):
        study = simulate(seed)
        ticks = np.flatnonzero(np.diff((study.image[:, 13] > 200).astype(int)) == 1)
        assert np.diff(ticks).mean() * study.truth.mm_per_pixel == pytest.approx(10, rel=0.03)


def test_the_body_mark_tells_the_side_at_the_model_s_resolution() -> None:
    """Half size, as the demo model sees it: the probe's bar is in the reader's left half for the patient's right."""
    for seed in range(60):
        study = simulate(seed)
        small = np.asarray(Image.fromarray(study.image).resize((140, 140), Image.Resampling.BICUBIC)).astype(int)
        right, left = (int((small[:14, start : start + 14] > 230).sum()) for start in (111, 125))
        assert study.truth.side is (None if left == right else Side.RIGHT if right > left else Side.LEFT)


@pytest.mark.parametrize("seed", range(8))
def test_a_dicom_file_is_whole_and_reads_back(seed: int) -> None:
    study = simulate(seed)
    data = dicom_bytes(study.image, study.truth, seed)
    dataset = pydicom.dcmread(io.BytesIO(data))
    # PS3.3 A.6: every attribute of type 1 has a value, every one of type 2 is there.
    valued = """SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality ImageType SamplesPerPixel
        PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelData
        SequenceOfUltrasoundRegions SpecificCharacterSet"""
    present = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
        ReferringPhysicianName SeriesNumber Laterality Manufacturer InstanceNumber PatientOrientation"""
    assert all(dataset[name].value not in (None, "", []) for name in valued.split())
    assert all(name in dataset for name in present.split())
    assert dataset.file_meta.MediaStorageSOPClassUID == dataset.SOPClassUID == UltrasoundImageStorage
    assert (dataset.PatientName, dataset.Modality, dataset.BitsAllocated) == ("SIMULATED^STUDY", "US", 8)
    region = dataset.SequenceOfUltrasoundRegions[0]
    calibration = """RegionSpatialFormat RegionDataType RegionFlags RegionLocationMinX0 RegionLocationMinY0
        RegionLocationMaxX1 RegionLocationMaxY1 PhysicalUnitsXDirection PhysicalUnitsYDirection PhysicalDeltaX PhysicalDeltaY"""
    assert all(region[name].value is not None for name in calibration.split())
    assert region.PhysicalUnitsXDirection == region.PhysicalUnitsYDirection == 3  # centimetres
    assert region.PhysicalDeltaX * 10 == region.PhysicalDeltaY * 10 == pytest.approx(study.truth.mm_per_pixel)
    (frame,) = decode_image(ImageInput(data))
    assert frame.pixels.shape == (FRAME, FRAME, 3), "ruler and body mark are inside the region that the runtime keeps"
    assert (frame.pixels == study.image[..., None]).all()


def test_a_dicom_file_is_the_same_for_a_seed_and_its_identifiers_differ_for_others() -> None:
    first, again, other = (simulate(seed) for seed in (3, 3, 4))
    assert dicom_bytes(first.image, first.truth, 3) == dicom_bytes(again.image, again.truth, 3)
    uids = [
        pydicom.dcmread(io.BytesIO(dicom_bytes(study.image, study.truth, study.seed))).SOPInstanceUID
        for study in (first, other)
    ]
    assert uids[0] != uids[1]


@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("dicom", "dcm")])
def test_the_command_writes_images_and_their_truths(tmp_path: Path, kind: str, ending: str) -> None:
    assert command.main(["--seed", "3", "--count", "2", "--output", str(tmp_path), "--format", kind]) == 0
    truths = json.loads((tmp_path / "truth.json").read_text())
    assert [truth["file"] for truth in truths] == [f"study-000003.{ending}", f"study-000004.{ending}"]
    for truth in truths:
        study = simulate(truth["seed"])
        (frame,) = decode_image(ImageInput((tmp_path / truth["file"]).read_bytes()))
        assert (frame.pixels == study.image[..., None]).all()
        assert (truth["region"], truth["kind"], truth["size_mm"]) == (
            study.truth.region.value,
            study.truth.kind,
            study.truth.size_mm,
        )


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        ([], "give --output"),
        (["--output", "{}/studies", "--count", "0"], "a count from 1"),
        (["--output", "{}/studies", "--seed", "-1"], "a seed from 0"),
        (["--output", "{}/file/studies"], "cannot be written"),
        (["--sheet", "{}/missing/sheet.png"], "cannot be written"),
    ],
)
def test_the_command_says_what_to_mend(
    arguments: list[str], mend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert command.main([argument.format(tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert mend in error and "Traceback" not in error and not (tmp_path / "studies").exists()


def test_the_sheet_has_a_row_per_region_and_a_column_per_finding(tmp_path: Path) -> None:
    assert command.main(["--sheet", str(tmp_path / "samples.png")]) == 0
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.width == 4 * FRAME and sheet.height // len(CATALOGUE) > FRAME
