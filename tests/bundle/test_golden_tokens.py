"""Golden tokens: every build brings them, every engine writes them, and what does not is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from echovlm_edge.export.bundle.golden_samples import SIDE
from echovlm_edge.runtime.bundle.golden_tokens import GOLDEN_TOKENS, GoldenPicture, GoldenSample, read_golden_tokens
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.golden_check import check_golden_tokens, log_checked
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support.changed_bundles import with_a_wrong_golden_token, without_golden_tokens

Open = Callable[..., ReportEngine]


@pytest.fixture
def opened() -> Iterator[Open]:
    engines = []

    def open_engine(bundle: Path, image_tokens: int | None = None, **options: object) -> ReportEngine:
        asked = EngineOptions(1, 0, 0, image_tokens=image_tokens)
        engines.append(ReportEngine.open(bundle, threads=1, options=asked, **options))  # type: ignore[arg-type]
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("precision", ["fp32", "int4", "int8"])
def test_a_bundle_writes_its_golden_tokens(build_bundle: Callable[..., Path], opened: Open, precision: str) -> None:
    engine = opened(build_bundle(precision=precision))
    checked = check_golden_tokens(engine)
    assert checked.tokens == checked.of == sum(len(sample.tokens) for sample in engine.golden_tokens) > 0
    assert {len(sample.pictures) for sample in engine.golden_tokens} <= {1, 2}


def test_a_gpu_bundles_golden_tokens_are_those_of_its_graphs(build_bundle: Callable[..., Path]) -> None:
    bundle = Bundle(build_bundle(target="cuda", precision="fp16"))
    assert read_golden_tokens(bundle) and GOLDEN_TOKENS in {file.name for file in bundle.manifest.files}


def test_another_token_is_named(golden_bundle: Path, tmp_path: Path, opened: Open) -> None:
    engine = opened(with_a_wrong_golden_token(golden_bundle, tmp_path / "wrong", 1))
    sample = engine.golden_tokens[-1]
    with pytest.raises(NotPossibleHere) as refused:
        check_golden_tokens(engine)
    assert f"token 1 of its {sample.name} is {sample.tokens[0] - 1}, not {sample.tokens[0]};" in str(refused.value)
    assert str(tmp_path / "wrong") in str(refused.value) and "\n" not in str(refused.value)


def test_options_that_do_not_admit_them_leave_them_out(
    golden_bundle: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    for engine in (opened(golden_bundle, max_sequence=8), opened(golden_bundle, image_tokens=(SIDE // 28) ** 2 - 1)):
        caplog.clear()
        log_checked(checked := check_golden_tokens(engine))
        assert (checked.tokens, checked.of > 0) == (0, True)
        assert caplog.text.count(f"only 0 of {checked.of} golden tokens were compared") == 1


def test_no_more_time_is_taken_than_there_is(golden_bundle: Path, opened: Open) -> None:
    ticks = count()
    checked = check_golden_tokens(opened(golden_bundle), most_seconds=0, clock=lambda: float(next(ticks)))
    assert checked.tokens == 0 < checked.of


def test_an_older_bundle_has_none(
    golden_bundle: Path, tmp_path: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    log_checked(check_golden_tokens(opened(without_golden_tokens(golden_bundle, tmp_path / "older"))))
    assert "the bundle has no golden tokens" in caplog.text


def test_a_garbled_file_is_named(golden_bundle: Path, tmp_path: Path, opened: Open) -> None:
    bundle = with_a_wrong_golden_token(golden_bundle, tmp_path / "garbled", 1)
    size = (bundle / GOLDEN_TOKENS).stat().st_size
    (bundle / GOLDEN_TOKENS).write_text("[{}]".ljust(size))
    with pytest.raises(NotPossibleHere, match=rf"{GOLDEN_TOKENS} is damaged"):
        opened(bundle)


def test_a_text_differs_at_its_first_other_token() -> None:
    sample = GoldenSample("one", "Why?", (), (5, 6, 7))
    for written, place in (((5, 6, 7), None), ((5, 6, 7, 8), None), ((5, 9, 7), 1), ((5, 6), 2), ((), 0)):
        assert sample.first_difference(written) == place


def test_a_picture_is_the_same_on_every_machine() -> None:
    pixels = GoldenPicture(112, 112, 5).pixels()
    assert pixels.shape == (112, 112, 3) and pixels.dtype == np.uint8
    assert pixels[::37, ::37, 0].tolist() == [
        [250, 230, 133, 207],
        [192, 255, 234, 160],
        [88, 198, 255, 154],
        [113, 110, 128, 80],
    ]
    assert (GoldenPicture(112, 112, 6).pixels() != pixels).any()
