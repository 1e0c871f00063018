"""Draw the pictures of docs/profiling.md: one profile's page in light and dark, and two profiles compared on a tablet and a phone.

python -m benchmarks.profile_pictures BEFORE.json AFTER.json [--output docs]
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from echovlm_edge.runtime.profiling.drawing.html_page import html_page
from echovlm_edge.runtime.profiling.schema import read

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 256  # colours of the palette; it makes a file a quarter as large


@dataclass(frozen=True)
class Picture:
    """What one file shows; pixels."""

    name: str
    width: int
    height: int
    dark: bool
    compared: bool


PICTURES = (
    Picture("profile-light", 1280, 1130, dark=False, compared=False),
    Picture("profile-dark", 1280, 1130, dark=True, compared=False),
    Picture("profile-tablet", 820, 1180, dark=False, compared=True),
    Picture("profile-phone", 360, 780, dark=True, compared=True),
)


def main() -> int:
    """Write the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/profiling.md from two profiles.")
    parser.add_argument("before", type=Path, metavar="BEFORE.json")
    parser.add_argument("after", type=Path, metavar="AFTER.json")
    parser.add_argument("--output", type=Path, default=Path("docs"), metavar="DIR")
    options = parser.parse_args()
    before, after = read(options.before), read(options.after)
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        one, two = Path(folder, "one.html"), Path(folder, "two.html")
        one.write_text(html_page({options.before.stem: before}), encoding="utf-8")
        two.write_text(html_page({options.before.stem: before, options.after.stem: after}), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for picture in PICTURES:
            draw(browser, two if picture.compared else one, picture).save(options.output / f"{picture.name}.png")
        browser.close()
    return 0


def draw(browser: Browser, page: Path, picture: Picture) -> Image.Image:
    """Take a screenshot of the top of a page, in a window of the picture's size."""
    context = browser.new_context(
        viewport={"width": picture.width, "height": picture.height},
        color_scheme="dark" if picture.dark else "light",
        offline=True,
    )
    window = context.new_page()
    window.goto(page.as_uri())
    window.wait_for_selector("body[data-drawn]")
    shot = Image.open(io.BytesIO(window.screenshot(animations="disabled")))
    context.close()
    return shot.convert("RGB").quantize(COLOURS)


if __name__ == "__main__":
    sys.exit(main())
