"""Simulated studies: repeatable from a seed, valid as DICOM, and reports whose facts can be read back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from demo import simulate as command
from demo.acquisition import FRAME, LEFT, PICTURE, TOP
from demo.corpus import every_report, facts, parse_report, write_report
from demo.dicom_writer import dicom_bytes
from demo.simulate import draw_finding, draw_truth, simulate
from demo.simulate import picture as draw_picture
from demo.truth import CATALOGUE, NORMAL
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.contracts.tasks import Language, Region
from echovlm_edge.runtime.imaging.image_file import decode_image


def picture(image: np.ndarray) -> np.ndarray:
    """The part of a frame inside its annotations."""
    return image[TOP : TOP + PICTURE, LEFT : LEFT + PICTURE].astype(float)


def test_a_seed_gives_the_same_study_and_another_a_different_one() -> None:
    again = simulate(7)
    assert again.truth == draw_truth(np.random.default_rng(7))
    assert again.truth == simulate(7).truth and (again.image == simulate(7).image).all()
    assert (again.image != simulate(8).image).any()


def test_every_finding_comes_up() -> None:
    truths = [draw_truth(np.random.default_rng(seed)) for seed in range(600)]
    seen = {(truth.region, truth.kind) for truth in truths}
    assert seen == {(region, finding.kind) for region, plan in CATALOGUE.items() for finding in plan.findings}


@pytest.mark.parametrize("seed", range(6))
def test_the_frames_of_a_study_are_of_one_organ_and_one_shows_the_finding(seed: int) -> None:
    study = simulate(seed, 4)
    assert study.images.shape[0] == len(study.shown) == 4
    assert study.truth == simulate(seed).truth and study.truth in study.shown
    assert {one.kind for one in study.shown} <= {study.truth.kind, NORMAL.kind}
    assert len({(one.region, one.side, one.depth_mm) for one in study.shown}) == 1
    assert len({image.tobytes() for image in study.images}) == 4


def test_some_frames_of_a_study_with_a_finding_are_normal() -> None:
    shares = [
        np.mean([one.kind == NORMAL.kind for one in study.shown])
        for seed in range(20)
        if (study := simulate(seed, 3)).truth.kind != NORMAL.kind
    ]
    assert 0 < np.mean(shares) < 0.7 and max(shares) < 1


@given(st.integers(0, 10_000), st.sampled_from(Language), st.integers(0, 99))
def test_the_facts_of_a_report_are_read_back(seed: int, language: Language, phrasing: int) -> None:
    truth = draw_truth(np.random.default_rng(seed))
    assert parse_report(write_report(truth, language, np.random.default_rng(phrasing)), language) == facts(truth)


def test_every_phrasing_is_written_and_read_back() -> None:
    truth = simulate(1).truth
    for language in Language:
        texts = every_report(truth, language)
        assert {write_report(truth, language, np.random.default_rng(seed)) for seed in range(200)} == set(texts)
        assert all(parse_report(text, language) == facts(truth) for text in texts)


def test_a_wrong_report_is_not_read_as_right() -> None:
    text = "Ultrasound findings: The left breast shows no focal lesion. Ultrasound impression: Normal, right breast."
    assert parse_report(text, Language.EN).region is None
    assert parse_report("The liver is fine.", Language.EN).kind is None
    for impression in ("Stone, left breast.", "Abnormal, left breast."):
        text = f"Ultrasound findings: The left breast shows no focal lesion. Ultrasound impression: {impression}"
        assert parse_report(text, Language.EN).kind is None


def brightness_behind(kind: str) -> float:
    """Below a lesion of the breast against beside it, median over studies."""
    ratios = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        (finding,) = (finding for finding in CATALOGUE[Region.BREAST].findings if finding.kind == kind)
        frame = picture(draw_picture(draw_finding(Region.BREAST, finding, random), random))
        around = frame[int(0.38 * PICTURE) : int(0.5 * PICTURE)].mean(0)
        below = gaussian_filter1d(frame[int(0.75 * PICTURE) :].mean(0), 6)
        # A cyst is the darkest place of its depth; a calcification's own shadow is.
        column = int(np.argmin(gaussian_filter1d(around if kind == "simple cyst" else below, 6)))
        ratios.append(below[column] / np.median(below))
    return float(np.median(ratios))


def test_fluid_is_followed_by_enhancement_and_calcium_by_a_shadow() -> None:
    assert brightness_behind("simple cyst") > 1.05
    assert brightness_behind("calcification") < 0.6


def test_the_ruler_tells_the_scale() -> None:
    for seed in range(20):
        study = simulate(seed)
        ticks = np.flatnonzero(np.diff((study.image[:, 13] > 200).astype(int)) == 1)
        spacing = np.diff(ticks).mean()
        assert spacing * study.truth.mm_per_pixel == pytest.approx(10, rel=0.03)


@pytest.mark.parametrize("seed", range(8))
def test_a_dicom_file_is_whole_and_reads_back(seed: int) -> None:
    study = simulate(seed)
    data = dicom_bytes(study.image, study.truth, seed)
    dataset = pydicom.dcmread(io.BytesIO(data))
    required = (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality PatientName PatientID StudyDate StudyID"
    )
    assert all(name in dataset for name in required.split())
    region = dataset.SequenceOfUltrasoundRegions[0]
    assert region.PhysicalDeltaX * 10 == pytest.approx(study.truth.mm_per_pixel)
    (frame,) = decode_image(ImageInput(data))
    assert (frame.pixels == study.image[..., None]).all() and frame.pixels.shape == (FRAME, FRAME, 3)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, ending in (("png", "png"), ("dicom", "dcm")):
        folder = tmp_path / kind
        assert command.main(["--seed", "3", "--count", "2", "--output", str(folder), "--format", kind]) == 0
        truths = json.loads((folder / "truth.json").read_text())
        assert [truth["file"] for truth in truths] == [f"study-000003.{ending}", f"study-000004.{ending}"]
        assert truths[0]["region"] == simulate(3).truth.region.value
    assert command.main(["--count", "1", "--frames", "2", "--output", str(tmp_path / "several")]) == 0
    frames = json.loads((tmp_path / "several" / "truth.json").read_text())
    assert [frame["file"] for frame in frames] == ["study-000000-1.dcm", "study-000000-2.dcm"]
    assert [frame["shows_finding"] for frame in frames] == [one.kind != "normal" for one in simulate(0, 2).shown]
    files = [pydicom.dcmread(tmp_path / "several" / frame["file"]) for frame in frames]
    assert len({file.StudyInstanceUID for file in files}) == 1 and len({file.SOPInstanceUID for file in files}) == 2
    assert command.main(["--frames", "0", "--output", str(tmp_path)]) == 2
    assert command.main([]) == 2
    assert "give --output" in capsys.readouterr().err
