"""Windows of an image: which patches attend to each other, and how a graph orders them."""

from __future__ import annotations

import numpy as np
import pytest

from echovlm_edge.runtime.imaging.preprocess import MAX_ASPECT_RATIO
from echovlm_edge.runtime.prompting.windows import image_windows, most_windows

MERGE, WINDOW, WHOLE = 2, 4, 64
# Patches in height and width: whole windows; partial ones at both edges; narrower than a window; one token.
GRIDS = {(16, 24): 6, (20, 18): 9, (4, 28): 4, (2, 2): 1, (46, 34): 30}


def places(height: int, width: int) -> list[tuple[int, int]]:
    """The row and column of each patch, in merge order."""
    squares = ((row, column) for row in range(0, height, MERGE) for column in range(0, width, MERGE))
    return [(row + i, column + j) for row, column in squares for i in range(MERGE) for j in range(MERGE)]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_window_has_the_patches_of_one_square_in_merge_order(grid: tuple[int, int]) -> None:
    windows = image_windows((1, *grid), MERGE, WINDOW)
    assert windows and len(windows.offsets) - 1 == GRIDS[grid] and windows.whole == WHOLE
    side, patches, seen = WINDOW * MERGE, places(*grid), []
    for first, end in zip(windows.offsets[:-1], windows.offsets[1:], strict=True):
        members = windows.order[first:end]
        assert (np.diff(members) > 0).all(), "merged patches are torn apart"
        (square,) = {(patches[number][0] // side, patches[number][1] // side) for number in members}
        seen.append(square)
    assert seen == sorted(set(seen)), "a square has two windows, or the squares are not row by row"
    assert sorted(windows.order) == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("grid", GRIDS)
def test_padding_and_taking_it_away_again_leaves_the_rows(grid: tuple[int, int]) -> None:
    windows = image_windows((1, *grid), MERGE, WINDOW)
    assert windows
    given = windows.inputs()
    rows, mask = given["window_rows"], given["window_mask"]
    values = np.arange(grid[0] * grid[1])
    assert (values[given["window_order"]][given["merge_order"]] == values).all()
    assert (values[rows].reshape(-1)[given["window_places"]] == values).all()
    for number, (first, end) in enumerate(zip(windows.offsets[:-1], windows.offsets[1:], strict=True)):
        keys = mask[number, 0]
        assert (keys == keys[0]).all() and (rows[number][keys[0]] == np.arange(first, end)).all()
        assert ((first <= rows[number]) & (rows[number] < end)).all(), "padding takes another window's rows"


def test_a_model_without_windows_has_none() -> None:
    assert image_windows((1, 8, 8), MERGE, 0) is None


def test_no_image_has_more_windows_than_the_bound() -> None:
    for height in range(1, 60):
        for width in range(height, min(MAX_ASPECT_RATIO * height, 400)):
            count = -(-height // WINDOW) * -(-width // WINDOW)
            assert count <= most_windows(height * width * MERGE**2, MERGE, WINDOW, MAX_ASPECT_RATIO)
