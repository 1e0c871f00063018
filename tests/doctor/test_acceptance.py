"""`echovlm-accept` on a real bundle, once, to its end; and by steps of its own: killed, changed, failing, refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import devices
from echovlm_edge.runtime.bundle.golden_tokens import GOLDEN_TOKENS
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.bundle.signature import PublicKey, check_signature
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.doctor.acceptance import command
from echovlm_edge.runtime.doctor.acceptance.archive import RESULT, SUMS, read_archive
from echovlm_edge.runtime.doctor.acceptance.checks import machine_and_bundle, tokens
from echovlm_edge.runtime.doctor.acceptance.checks.questions import Question, same
from echovlm_edge.runtime.doctor.acceptance.limits import Limit, Limits, judge, read_limits
from echovlm_edge.runtime.doctor.acceptance.privacy import Redaction
from echovlm_edge.runtime.doctor.acceptance.schema import Check, Figure, Outcome, State, StepResult
from echovlm_edge.runtime.doctor.acceptance.setting import Setting, Skipped
from echovlm_edge.runtime.doctor.acceptance.steps import Step, run_step, steps
from echovlm_edge.runtime.profiling import command as profile_command
from echovlm_edge.runtime.profiling.schema import IN_ARCHIVE, dump
from tests.conftest import BuildBundle
from tests.support.profiles import profile
from tests.support.signing import Keys, new_keys

DEMO = Path(__file__).parents[2] / "demo/checkpoint"
HOST, USER = "cart7.hospital.example", "annabel"
STEPS = ["doctor", "bundle", "golden", "batches", "study", "faults", "device-tests"]
STEPS += ["W1", "W7", "Q", "W1-196", "W7-196", "Q-196", "load"]


@dataclass(frozen=True)
class Accepted:
    """A run of the command: its exit code, its folder and archive, and the keys that signed it."""

    code: int
    folder: Path
    archive: Path
    keys: Keys


@pytest.fixture(scope="module")
def bundle(build_bundle: BuildBundle) -> Path:
    return build_bundle(DEMO, precision="int4")


@pytest.fixture(scope="module")
def accepted(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Accepted:
    """The whole command on the demo's bundle, with short runs and three seconds of load."""
    folder = tmp_path_factory.mktemp("acceptance")
    keys = new_keys(folder)
    options = ["--bundle", bundle, "--output", folder / "out", "--target", "cpu", "--sign", keys.secret]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: HOST)
        patch.setattr("getpass.getuser", lambda: USER)
        code = command.main([*map(str, options), "--quick", "--minutes", "0.05", "--name", "OR 3"])
    (archive,) = (folder / "out").glob("*.zip")
    return Accepted(code, folder / "out", archive, keys)


def test_it_runs_to_its_verdict(accepted: Accepted) -> None:
    result = read_archive(accepted.archive)
    assert [step.name for step in result.steps] == STEPS
    failed = {step.name: step.reason for step in result.steps if step.state is not State.PASSED}
    (why,) = [failed.pop(step.name) for step in result.steps if step.state is State.SKIPPED]
    assert failed == {} and result.passed and accepted.code == 0
    assert "NVIDIA GPU" in why or "--checks" in why, "the tests of a GPU, which this run was not given"
    checks = {step.name: step.outcome.checks for step in result.steps}
    assert len(checks["batches"]) == 8 and len(checks["faults"]) == 9
    assert all(check.state is State.PASSED for name in STEPS[2:6] for check in checks[name])
    figures = {figure.name: figure.value for figure in result.judged}
    assert all((figures[f"{name}.first_token_seconds"] or 0) > 0 for name in ("W1", "W7-c8", "Q-196", "Q-196-c8"))
    assert (figures["load.tokens_per_second"] or 0) > 0 and (figures["load.reports"] or 0) >= 8
    samples = result.steps[-1].outcome.samples
    assert samples[-1].seconds >= 3 and any(sample.tokens_per_second > 0 for sample in samples)
    names = {path.name for path in accepted.folder.iterdir()}
    assert names == {"acceptance.html", accepted.archive.name}


def test_the_archive_has_signed_hashes_of_all_its_files(accepted: Accepted, tmp_path: Path) -> None:
    with zipfile.ZipFile(accepted.archive) as archive:
        archive.extractall(tmp_path)
    sums = (tmp_path / SUMS).read_bytes()
    check_signature(sums, tmp_path / SUMS, [PublicKey.read(accepted.keys.public)])
    listed = {line[66:]: line[:64] for line in sums.decode().splitlines()}
    files = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(files) - set(listed) == {SUMS, f"{SUMS}.minisig"}
    assert {name: hashlib.sha256(files[name].read_bytes()).hexdigest() for name in listed} == listed


def test_the_archive_names_no_place_and_nobody(accepted: Accepted, bundle: Path) -> None:
    words = [str(bundle), str(accepted.folder), HOST, HOST.partition(".")[0], USER]
    with zipfile.ZipFile(accepted.archive) as archive:
        for name in archive.namelist():
            assert Path(name).suffix in {".json", ".html", ".toml", ".log", ".minisig", ""}  # no pictures
            text = archive.read(name).decode()
            assert [word for word in words if word in text] == [], name
        assert json.loads(archive.read(RESULT))["name"] == "OR 3"


def test_an_archive_that_changed_is_refused(accepted: Accepted, tmp_path: Path) -> None:
    changed = tmp_path / "changed.zip"
    with zipfile.ZipFile(accepted.archive) as archive, zipfile.ZipFile(changed, "w") as copy:
        for name in archive.namelist():
            content = archive.read(name)
            copy.writestr(name, content.replace(b'"passed": true', b'"passed": True') if name == RESULT else content)
    with pytest.raises(InvalidInput, match=r"has changed since it was written \(acceptance.json\)"):
        read_archive(changed)
    (tmp_path / "text.zip").write_text("text")
    with pytest.raises(InvalidInput, match="is no archive of echovlm-accept"):
        read_archive(tmp_path / "text.zip")


def test_its_profile_is_read(accepted: Accepted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert profile_command.main(["page", str(accepted.archive), "--html", str(page)]) == 0
    assert "W7-196-c8" in page.read_text()
    profiles = []
    for number in range(2):  # of as many runs as a comparison needs
        profiles.append(tmp_path / f"{number}.zip")
        with zipfile.ZipFile(profiles[-1], "w") as archive:
            archive.writestr(IN_ARCHIVE, json.dumps(dump(profile(number))))
    assert profile_command.main(["compare", *map(str, profiles)]) == 0
    assert "end to end" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a", "b")
    assert profile_command.main(["compare", str(accepted.archive), str(tmp_path / "other.zip")]) == 2
    assert "holds no profile.json" in capsys.readouterr().err


def test_a_page_per_device(accepted: Accepted, tmp_path: Path) -> None:
    assert devices.main([str(accepted.archive), "--folder", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    assert "**Passed**, with few and short runs" in text and "| W7-196-c8.first_token_seconds | " in text


def step(
    name: str, run: Callable[[Setting], Outcome] = lambda setting: Outcome(), figures: tuple[str, ...] = ()
) -> Step:
    return Step(name, f"what {name} is", run, figures=figures)


@pytest.fixture
def accept(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command with other steps, and without limits unless some are given."""
    (tmp_path / "none.toml").touch()
    usual = ("--output", str(tmp_path / "out"), "--limits", str(tmp_path / "none.toml"))

    def run(*planned: Step, options: tuple[str, ...] = (), of: Path = bundle) -> int:
        monkeypatch.setattr(command, "steps", lambda minutes, modes: planned)
        return command.main(["--bundle", str(of), *usual, *options])

    return run


def only_archive(folder: Path) -> Path:
    (found,) = folder.glob("out/*.zip")
    return found


KILLED = """
import os, signal, sys
from pathlib import Path
from echovlm_edge.runtime.doctor.acceptance import command
from echovlm_edge.runtime.doctor.acceptance.schema import Outcome
from echovlm_edge.runtime.doctor.acceptance.steps import Step
bundle, output, limits = sys.argv[1:]
command.plotting_library = lambda otherwise: ""  # seconds, and no page is made
die = lambda setting: os.kill(os.getpid(), signal.SIGKILL)
command.steps = lambda minutes, modes: [
    Step(name, f"what {name} is", die if name == "two" else lambda setting: Outcome()) for name in ("one", "two", "three")
]
command.main(["--bundle", bundle, "--output", output, "--limits", limits])
"""


def test_killed_it_continues_with_the_next_step(
    bundle: Path, accept: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [str(bundle), str(tmp_path / "out"), str(tmp_path / "none.toml")]
    killed = subprocess.run([sys.executable, "-c", KILLED, *options], check=False)
    assert killed.returncode == -signal.SIGKILL
    ran: list[str] = []

    def noted(name: str) -> Step:
        return step(name, lambda setting: (ran.append(name), Outcome())[1])

    three = [noted(name) for name in ("one", "two", "three")]
    assert accept(*three) == 0
    assert ran == ["two", "three"]
    assert "1 of 3, one (before it was interrupted): passed" in capsys.readouterr().out
    assert [found.name for found in read_archive(only_archive(tmp_path)).steps] == ["one", "two", "three"]
    only_archive(tmp_path).unlink()
    assert accept(*three) == 0  # it had ended: another one
    assert ran == ["two", "three", "one", "two", "three"]


def interrupted(setting: Setting) -> Outcome:
    raise KeyboardInterrupt


def test_a_changed_bundle_or_other_options_begin_again(
    bundle: Path, accept: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    one = step("one", lambda setting: (ran.append("one"), Outcome())[1])
    assert accept(one, step("two", interrupted)) == 130
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"bundle_id": "0123456789abcdef"}))
    assert accept(one, step("two", interrupted), of=other) == 130
    assert "The bundle changed since the run that was interrupted: it begins again." in capsys.readouterr().out
    assert accept(one, step("two"), options=("--minutes", "3"), of=other) == 0
    assert "The options changed since" in capsys.readouterr().out
    assert ran == ["one"] * 3


def test_a_broken_limit_fails(accept: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text('[figures]\n"load.watts" = { most = 20 }\n"load.reports" = { least = 3 }\n')
    names = ("load.watts", "load.reports")

    def measured(watts: float) -> Step:
        figures = (Figure("load.watts", watts), Figure("load.reports", 3))
        return step("load", lambda setting: Outcome(figures=figures), names)

    assert accept(measured(20), options=("--limits", str(limits))) == 0
    only_archive(tmp_path).unlink()
    assert accept(measured(20.1), options=("--limits", str(limits))) == 1
    assert "load.watts is 20.1, its limit is at most 20." in capsys.readouterr().out
    result = read_archive(only_archive(tmp_path))
    assert not result.passed and result.failures == ("load.watts is 20.1, its limit is at most 20.",)


def test_what_was_skipped_or_not_measured_does_not_pass() -> None:
    skipped = [StepResult("golden", "", State.SKIPPED, 0.0, "It has none.")]
    assert judge(skipped, Limits((), {})) == ((), ())
    _, failures = judge(skipped, Limits(("golden",), {"load.watts": Limit(most=3)}))
    assert failures == (
        "The step golden must pass, and was skipped: It has none.",
        "load.watts is not measured, its limit is at most 3.",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('required = ["goldens"]', "names the step goldens, which there is not: there are golden"),
        ('[figures]\n"load.wats" = { most = 3 }', "names the figure load.wats"),
        ('[figures]\n"load.watts" = { below = 3 }', "is wrong at figures.load.watts.below"),
        ("= 3", "is not TOML"),
    ],
)
def test_limits_that_mean_nothing_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "limits.toml").write_text(text)
    with pytest.raises(InvalidInput, match=says):
        read_limits(tmp_path / "limits.toml", ["golden"], ["load.watts"])


def test_the_example_of_limits_names_what_there_is() -> None:
    planned = steps(10, None)
    names, figures = [one.name for one in planned], [name for one in planned for name in one.figures]
    limits = read_limits(DEMO.parents[1] / "deploy/acceptance.toml", names, figures)
    assert len(limits.required) == 10 and len(limits.figures) == 10
    assert read_limits(None, names, figures).figures == {}


def test_refused_before_anything_runs(
    accept: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    never = step("never", interrupted)
    assert accept(never, options=("--target", "jetson-orin")) == 2
    assert "is for cpu, not jetson-orin" in capsys.readouterr().err
    assert accept(never, options=("--limits", str(tmp_path / "nowhere.toml"))) == 2
    assert accept(never, options=("--minutes", "0")) == 2
    assert accept(never, options=("--sign", str(tmp_path / "none.key"))) == 2
    assert accept(never, of=tmp_path) == 2


def test_whatever_a_step_raises_is_its_result(bundle: Path, tmp_path: Path) -> None:
    setting, redaction = Setting(Bundle(bundle), tmp_path), Redaction({str(bundle): "BUNDLE"})

    def result(run: Callable[[Setting], Outcome]) -> tuple[State, str]:
        found = run_step(step("a step", run), setting, redaction)
        return found.state, found.reason

    def raises(error: Exception) -> Callable[[Setting], Outcome]:
        def run(setting: Setting) -> Outcome:
            raise error

        return run

    assert result(raises(Skipped("No sensor."))) == (State.SKIPPED, "No sensor.")
    assert result(raises(NotPossibleHere(f"{bundle} is damaged."))) == (State.FAILED, "BUNDLE is damaged.")
    state, reason = result(raises(ZeroDivisionError()))
    assert state is State.FAILED and "an error of its own (ZeroDivisionError)" in reason
    assert "ZeroDivisionError" in (setting.logs / "a step.log").read_text()
    wrong, undecided = Check("b", State.FAILED, "Why."), Check("c", State.SKIPPED, "No.")
    assert result(lambda setting: Outcome((Check("a", State.PASSED), wrong, undecided))) == (State.FAILED, "b: Why.")
    assert result(lambda setting: Outcome((undecided,))) == (State.SKIPPED, "c: No.")


def test_a_changed_byte_fails(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    raw = (other / "decoder.data").read_bytes()
    (other / "decoder.data").write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    found = run_step(step("bundle", machine_and_bundle.bundle), Setting(Bundle(other), tmp_path), Redaction({}))
    assert found.state is State.FAILED and "decoder.data has changed" in found.reason


def test_a_service_that_writes_another_token_fails(bundle: Path, tmp_path: Path) -> None:
    """Of the golden tokens in a file, the first is replaced by another one of as many digits."""
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    file = other / GOLDEN_TOKENS
    samples = json.loads(file.read_text())
    first = str(samples[0]["tokens"][0])
    text = file.read_text().replace(
        f'"tokens": [\n   {first}', f'"tokens": [\n   {int(first[0]) % 9 + 1}{first[1:]}', 1
    )
    assert text != file.read_text()
    file.write_text(text)
    found = run_step(step("golden", tokens.golden), Setting(Bundle(other), tmp_path), Redaction({}))
    states = [check.state for check in found.outcome.checks]
    assert found.state is State.FAILED and states == [State.FAILED] + [State.PASSED] * (len(samples) - 1)
    assert found.reason == f"{samples[0]['name']}: Token 1 of {len(samples[0]['tokens'])} is not the golden one."


def test_how_answers_are_compared(bundle: Path, tmp_path: Path) -> None:
    floats = Path(shutil.copytree(bundle, tmp_path / "floats"))  # where near ties may differ
    manifest = json.loads((floats / MANIFEST).read_text())
    (floats / MANIFEST).write_text(json.dumps(manifest | {"precision": "fp32"}))
    exact, other = (Setting(Bundle(path), tmp_path) for path in (bundle, floats))
    question, golden = Question("q", "", ()), Question("g", "", (), (1, 2))
    assert same(exact, question, (1, 2), (1, 2)).state is State.PASSED
    assert same(exact, question, (1, 2), (1, 3)).detail == "Token 2 differs from the one that is written alone."
    assert same(exact, question, (1, 2), (1,)).state is State.FAILED
    assert same(other, question, (1, 2), (1, 3)).state is State.SKIPPED
    assert same(other, golden, (1, 2, 3), (1, 2, 4)).state is State.PASSED
    assert same(other, golden, (1, 2, 3), (1, 3, 3)).state is State.FAILED


def test_names_are_replaced_whole() -> None:
    redaction = Redaction({"/home/ann/bundle": "BUNDLE", "/home/ann": "HOME", "ann": "USER", "cart7": "HOST"})
    said = redaction.text("ann@cart7: /home/ann/bundle/decoder.data, /home/ann/x, annotation")
    assert said == "USER@HOST: BUNDLE/decoder.data, HOME/x, annotation"
    assert redaction.value({"ann": ["ann", 1]}) == {"ann": ["USER", 1]}


def test_this_hosts_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "cart7.hospital.example")
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    redaction = Redaction.of(tmp_path / "bundle", tmp_path)
    said = redaction.text(f"ann, cart7, cart7.hospital.example, {tmp_path}/bundle/a, {tmp_path}/b")
    assert said == f"USER, HOST, HOST, BUNDLE{os.sep}a, OUTPUT{os.sep}b"
