"""Simulate ultrasound studies with their ground truth from a seed: PNG or DICOM files, or a sheet of samples.

python -m demo.simulate --seed 1 --count 10 --output studies --format dicom
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track

from demo.acquisition import FRAME, PICTURE, acquire, geometry
from demo.anatomy import paint
from demo.dicom_writer import dicom_bytes
from demo.tissue import Tissue
from demo.truth import CATALOGUE, NORMAL, Finding, Side, Truth, without_finding
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tasks import Region


@dataclass(frozen=True)
class Study:
    """One simulated study.

    Attributes:
        seed: of all random numbers.
        images: its frames, uint8 [frames, FRAME, FRAME], gray.
        truth: of the whole study.
        shown: what each frame shows: the study's truth, or none of its finding.
    """

    seed: int
    images: NDArray[np.uint8]
    truth: Truth
    shown: tuple[Truth, ...]

    @property
    def image(self) -> NDArray[np.uint8]:
        """Return the first frame, uint8 [FRAME, FRAME]."""
        return self.images[0]


def simulate(seed: int, frames: int = 1) -> Study:
    """Simulate the study of a seed: all regions are equally likely, and so are all findings within a region."""
    random = np.random.default_rng(seed)
    truth = draw_truth(random)
    shown = draw_shown(truth, frames, random)
    return Study(seed, np.stack([picture(one, random) for one in shown]), truth, shown)


def draw_shown(truth: Truth, frames: int, random: np.random.Generator) -> tuple[Truth, ...]:
    """Draw what each frame of a study shows: a finding is in at least one of them, at any place in their order."""
    if frames == 1:
        return (truth,)
    showing = random.permutation(frames)[: random.integers(1, frames + 1)]
    return tuple(truth if index in showing else without_finding(truth) for index in range(frames))


def draw_truth(random: np.random.Generator) -> Truth:
    """Draw a study's ground truth, which are the first random numbers of its seed."""
    region = list(CATALOGUE)[random.integers(len(CATALOGUE))]
    findings = CATALOGUE[region].findings
    return draw_finding(region, findings[random.integers(len(findings))], random)


def draw_finding(region: Region, finding: Finding, random: np.random.Generator) -> Truth:
    """Draw the details of a given finding: side, size, margin, depth."""
    plan = CATALOGUE[region]
    depth = int(random.choice(plan.depths_mm))
    side = list(Side)[random.integers(2)] if plan.has_side else None
    size = int(random.integers(finding.size_mm[0], finding.size_mm[1] + 1)) if finding.size_mm else None
    margin = str(random.choice(finding.margins)) if finding.margins else ""
    echogenicity, scale = finding.echogenicity, depth / (PICTURE - 1)
    return Truth(region, finding.kind, side, size, margin, echogenicity, plan.probe, depth, scale)


def picture(truth: Truth, random: np.random.Generator) -> NDArray[np.uint8]:
    """Simulate a frame that shows the truth."""
    points = geometry(truth.probe, truth.depth_mm)
    tissue = Tissue(points.x, points.z, truth.probe)
    paint(tissue, truth, random)
    return acquire(tissue, truth, random)


def truth_as_json(study: Study) -> dict[str, Any]:
    """Convert a study's truth for truth.json."""
    values = asdict(study.truth)
    return {"seed": study.seed} | {key: getattr(value, "value", value) for key, value in values.items()}


def sample_sheet(seed: int) -> Image.Image:
    """Draw a row per region and a column per finding, each with its name."""
    caption = 18
    sheet = Image.new("L", (4 * FRAME, len(CATALOGUE) * (FRAME + caption)), 20)
    draw = ImageDraw.Draw(sheet)
    for row, (region, plan) in enumerate(CATALOGUE.items()):
        for column, finding in enumerate(plan.findings):
            random = np.random.default_rng([seed, row, column])
            truth = draw_finding(region, finding, random)
            corner = (column * FRAME, row * (FRAME + caption))
            words = [
                region.value,
                truth.kind,
                truth.side.value if truth.side else "",
                f"{truth.size_mm} mm" if truth.size_mm else "",
            ]
            draw.text(
                (corner[0] + 6, corner[1] + 3), ", ".join(word for word in [*words, truth.margin] if word), fill=230
            )
            sheet.paste(Image.fromarray(picture(truth, random)), (corner[0], corner[1] + caption))
    return sheet


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="demo.simulate", description="Simulate ultrasound studies with ground truth.")
    parser.add_argument("--seed", type=int, default=0, help="of the first study; the others count on")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--frames", type=int, default=1, help="of each study; a finding is in at least one (default 1)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the images and truth.json")
    parser.add_argument("--format", choices=("png", "dicom"), default="dicom")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write a PNG with a sample of every finding")
    options = parser.parse_args(arguments)

    def command() -> int:
        if not options.output and not options.sheet:
            raise NotPossibleHere("Nothing to write: give --output DIR, --sheet FILE or both.")
        if options.frames < 1:
            raise NotPossibleHere("A study has at least one frame: give --frames of at least 1.")
        try:
            if options.sheet:
                sample_sheet(options.seed).save(options.sheet, optimize=True)
            if options.output:
                _write_studies(
                    range(options.seed, options.seed + options.count), options.frames, options.output, options.format
                )
        except OSError as error:
            raise NotPossibleHere(f"{error.filename or options.output} cannot be written ({error.strerror}).") from None
        return 0

    return run_command(command)


def _write_studies(seeds: range, frames: int, folder: Path, kind: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    truths = []
    for seed in track(seeds, "Simulating", console=Console(stderr=True)):
        study = simulate(seed, frames)
        for number, (image, shown) in enumerate(zip(study.images, study.shown, strict=True), 1):
            name = f"study-{seed:06}" + (f"-{number}" if frames > 1 else "")
            if kind == "png":
                Image.fromarray(image).save(folder / f"{name}.png")
            else:
                (folder / f"{name}.dcm").write_bytes(dicom_bytes(image, study.truth, seed, number))
            file = f"{name}.{'png' if kind == 'png' else 'dcm'}"
            truths.append({"file": file, "shows_finding": shown.kind != NORMAL.kind, **truth_as_json(study)})
    (folder / "truth.json").write_text(json.dumps(truths, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
