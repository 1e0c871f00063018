"""What a comparison says where it can tell, where it cannot, and by its exit codes; it needs nothing of the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.profiling import command, schema
from echovlm_edge.runtime.profiling.comparison.bounds import judged, parse
from echovlm_edge.runtime.profiling.comparison.compare import Margins, compare, summary, verdict
from echovlm_edge.runtime.profiling.distributions import Change
from tests.support.profiles import profile

TRIES = 60
BLOCKED = (
    *("onnxruntime", "tensorrt", "grpc", "PIL", "pydicom", "tokenizers", "echovlm", "echovlm_edge.plugins"),
    *(f"echovlm_edge.runtime.{name}" for name in ("engine", "client", "backends", "scheduler", "bundle")),
)


def written(profile: schema.Profile, path: Path) -> Path:
    path.write_text(json.dumps(schema.dump(profile)))
    return path


def change(low: float, high: float) -> Change:
    return Change(1.0, 1.0 + (low + high) / 2, (low + high) / 2, low, high, 0.01)


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.206, 0.991, "cannot tell"),  # a quarter slower, as it seems: it is not the same
        (0.021, 0.3, "slower"),
        (-0.3, -0.021, "faster"),
        (-0.05, 0.05, "the same"),
        (-0.01, 0.049, "the same"),
        (-0.01, 0.051, "cannot tell"),
        (-0.051, 0.01, "cannot tell"),
        (0.019, 0.06, "cannot tell"),  # slower by something, maybe by what any two processes differ by
        (0.021, 0.04, "slower"),  # for certain, if only by a little
    ],
)
def test_the_same_is_said_only_within_the_margin(low: float, high: float, says: str) -> None:
    assert verdict(change(low, high), Margins()) == says


@given(st.floats(-0.9, 3), st.floats(-0.9, 3))
def test_one_verdict_for_every_interval(one: float, other: float) -> None:
    low, high = sorted((one, other))
    said = verdict(change(low, high), Margins())
    assert (said == "the same") <= (low >= -0.05 and high <= 0.05)
    assert (said == "slower") == (low > 0.02) and (said == "faster") == (high < -0.02)


def test_noise_is_never_called_the_same() -> None:
    for seed in range(TRIES):
        found = compare(profile(seed, 5, noise=0.4), profile(1000 + seed, 5, noise=0.4))["W1"]
        assert not [figure for figure in found if figure.verdict == "the same"]


def test_a_real_change_beyond_the_margin_is_called_the_same_at_most_in_one_of_20_tries() -> None:
    wrong = 0
    for seed in range(TRIES):
        slower = profile(1000 + seed, 20, slower={"decode": 1.06})
        (decode,) = [f for f in compare(profile(seed, 20), slower)["W1"] if f.name == "decode"]
        wrong += decode.verdict == "the same"
    assert wrong <= 0.05 * TRIES


def test_quiet_runs_are_called_the_same() -> None:
    (found,) = compare(profile(1, 20, noise=0.01), profile(2, 20, noise=0.01)).values()
    assert {figure.verdict for figure in found} == {"the same"}


@pytest.mark.parametrize(("runs", "noise"), [(10, 0.03), (10, 0.15), (30, 0.1)])
def test_the_smallest_change_that_would_be_seen_is_seen_in_most_tries(runs: int, noise: float) -> None:
    seen = 0
    for seed in range(TRIES):
        (vision,) = [
            figure
            for figure in compare(profile(seed, runs, noise), profile(1000 + seed, runs, noise))["W1"]
            if figure.name == "vision"
        ]
        planted = profile(2000 + seed, runs, noise, {"vision": 1 + vision.smallest})
        (again,) = [f for f in compare(profile(seed, runs, noise), planted)["W1"] if f.name == "vision"]
        seen += again.verdict == "slower"
    assert 0.6 * TRIES <= seen <= 0.95 * TRIES  # 8 of 10 is what is promised; the runs' scatter is itself an estimate


def test_the_sentence_that_sums_up() -> None:
    found = compare(profile(1), profile(2, slower={"vision": 1.5, "decode": 0.5}))
    figures = found["W1"]
    counts = {said: sum(f.verdict == said for f in figures) for said in ("slower", "faster", "the same", "cannot tell")}
    told = summary(figures)
    assert counts["slower"] >= 1 and f"{counts['slower']} figure" in told and "got slower" in told
    assert f"{counts['faster']} got faster" in told
    assert ("cannot be told apart: measure more runs" in told) == (counts["cannot tell"] > 0)
    noisy = summary(compare(profile(1, 5, noise=0.5), profile(2, 5, noise=0.5))["W1"])
    assert noisy == "None of the 9 figures can be told apart: measure more runs."
    quiet = summary(compare(profile(1, 30, noise=0.01), profile(2, 30, noise=0.01))["W1"])
    assert quiet == "All 9 figures are the same within 5%."
    one = [f for f in figures if f.verdict == "slower"][:1]
    assert summary(one) == "The one figure got slower."


def test_the_margin_must_hold_the_tolerance() -> None:
    with pytest.raises(InvalidInput, match="margin of 1% is below the tolerance of 2%"):
        Margins(same=0.01)


def test_compare_names_what_it_cannot_tell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(written(profile(seed, 5, noise=0.3), tmp_path / f"{seed}.json")) for seed in (1, 2)]
    assert command.main(["compare", *files]) == 0
    told = capsys.readouterr()
    first = told.out.strip().splitlines()[0]
    assert first.startswith("W1: ") and first.endswith("told apart: measure more runs.")
    rows = [line for line in told.out.splitlines() if line.rstrip().endswith(("the same", "cannot tell"))]
    assert len(rows) == 9 and not [row for row in rows if "the same" in row] and told.err == ""


BROKEN, CANNOT_TELL, HOLDS = 1, 3, 0


@pytest.mark.parametrize(
    ("noise", "factor", "bound", "code"),
    [
        (0.01, 1.0, "end_to_end_change<5%", HOLDS),
        (0.01, 1.2, "end_to_end_change<30%", BROKEN),  # the assertion holds; that it got slower is told all the same
        (0.01, 1.2, "vision_change<5%", BROKEN),
        (0.4, 1.0, "W1.vision_change<5%", CANNOT_TELL),
        (0.4, 1.0, "change<5%", CANNOT_TELL),
        (0.01, 1.0, "change<5%", HOLDS),
        (0.01, 0.7, "vision_change<-10%", HOLDS),
        (0.01, 1.0, "vision_change<-10%", BROKEN),
        (0.4, 1.0, "vision_change>-90%", HOLDS),
    ],
)
def test_an_assertion_that_cannot_be_decided_does_not_pass(
    noise: float, factor: float, bound: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        str(written(profile(1, 20, noise), tmp_path / "before.json")),
        str(written(profile(2, 20, noise, {"vision": factor}), tmp_path / "after.json")),
    ]
    assert command.main(["compare", *files, "--assert", bound]) == code
    told = capsys.readouterr().err
    assert ("cannot be decided" in told) == (code == CANNOT_TELL)
    assert ("measure more runs" in told) == (code == CANNOT_TELL)


def test_what_is_broken_counts_before_what_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(written(profile(seed, 20, 0.4), tmp_path / f"{seed}.json")) for seed in (1, 2)]
    bounds = ["vision_change<5%", "end_to_end_p95<1ms"]
    assert command.main(["compare", *files, *(word for bound in bounds for word in ("--assert", bound))]) == BROKEN
    told = capsys.readouterr().err
    assert "breaks end_to_end_p95<1ms" in told and "vision_change<5% cannot be decided" in told


@pytest.mark.parametrize(
    ("bound", "says"),
    [
        ("vision_change<5ms", "wrong unit"),
        ("nothing_change<5%", "names no figure"),
        ("Q.vision_change<5%", "was not compared: there are W1"),
        ("queue_change<5%", "has no queue"),
    ],
)
def test_assertions_about_changes_that_are_none(bound: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        judged(compare(profile(1), profile(2)), [parse(bound)])


def test_a_change_cannot_be_asserted_of_one_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--bundle", "none", "--assert", "vision_change<5%"]) == 2
    assert "compares two profiles" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["compare", "--help"], ["--help"]])
def test_help_tells_the_exit_codes(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0" in told and "1" in told and "2" in told
    if words[0] == "compare":
        assert "3 an assertion that these runs cannot decide" in told and "FIGURE_change" in told


@pytest.mark.parametrize("action", ["compare", "page"])
def test_profiles_are_compared_where_nothing_can_run_a_model(action: str, tmp_path: Path) -> None:
    files = [str(written(profile(seed), tmp_path / f"{seed}.json")) for seed in (1, 2)]
    if action == "page":
        pytest.importorskip("vl_convert")
        files += ["--html", str(tmp_path / "page.html")]
    program = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
from echovlm_edge.runtime.profiling import command
sys.exit(command.main({[action, *files]!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
