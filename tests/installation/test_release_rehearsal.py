"""The rehearsal's parts that take seconds: its steps are the page's, every extra is decided, and a root is left alone inside."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.rehearsal import __main__ as command
from deploy.rehearsal import empty_root, journey, namespace
from deploy.rehearsal.running import run
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
# Other names of an extra, what others share, and what is for this project's own work.
NOT_INSTALLED = {"gpu", "runtime", "fuzz", "llama", "cuda-kernels", "dev"}
PROGRAMS = ("sh", "env", "cat", "grep", "id", "ls")


def apart(*words: str) -> bool:
    """Whether this computer lets a process have its own namespaces."""
    return not subprocess.run(["unshare", "-rmn", *words], capture_output=True, check=False).returncode


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A root with a shell, a few programs and their libraries, and a file in the folder where commands run."""
    if not shutil.which("ip") or not apart("true"):
        pytest.skip("this computer has no ip (Debian: iproute2), or allows no namespaces")
    root = tmp_path / "root"
    for folder in ("bin", "usr/bin", "proc", "sys", "dev", "release"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for program in PROGRAMS:
        path = Path(shutil.which(program) or "")
        shutil.copy(path, root / "usr" / "bin")
        libraries = re.findall(r"(/\S+) \(0x", subprocess.run(["ldd", path], capture_output=True, text=True).stdout)
        for library in map(Path, libraries):
            (root / library.parent.relative_to("/")).mkdir(parents=True, exist_ok=True)
            shutil.copy(library, root / library.relative_to("/"))
    shutil.copy(root / "usr" / "bin" / "sh", root / "bin" / "sh")
    (root / "release" / "here.txt").write_text("carried\n")
    return root


def said(root: Path, line: str) -> str:
    words = namespace.Namespace(root).words(line)
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inside_is_the_root_alone_without_a_network_and_without_this_computers_environment(
    small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/somewhere")
    assert said(small_root, "cat here.txt; id -u; ls /release") == "carried\n0\nhere.txt\n"
    assert re.findall(r"(\S+):", said(small_root, "cat /proc/net/dev")) == ["lo"]
    assert "PIP" not in said(small_root, "env")
    assert str(ROOT) not in said(small_root, "ls / /home 2>&1 || true")
    assert not list((small_root / "dev").iterdir()), "what is mounted inside is seen outside"


def test_what_is_started_inside_ends_with_the_step(small_root: Path) -> None:
    shutil.copy(shutil.which("sleep") or "", small_root / "usr" / "bin")
    mark = "86399.25"  # seconds, as no other process of this computer sleeps
    said(small_root, f"sleep {mark} > /dev/null 2>&1 &")
    commands = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            commands.append(file.read_bytes())
    assert commands and not any(mark.encode() in words for words in commands)


def shell(line: str) -> list[str]:
    return ["/bin/sh", "-ec", line]


def test_a_step_that_fails_is_shown_with_its_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        journey.Step("one", "echo first"),
        journey.Step("two", "echo some words\necho why it fails >&2\nfalse"),
        journey.Step("three", "echo never"),
    ]
    log = tmp_path / "log"
    assert not run(steps, 1, shell, log)
    shown = capsys.readouterr()
    assert re.match(r"1 of 3, one\n +done: \d+ s\n2 of 3, two\n$", shown.out), shown.out
    assert "echo why it fails >&2\nfalse" in shown.err and "some words\nwhy it fails" in shown.err
    assert "first" not in shown.err and "never" not in log.read_text()
    assert run(steps, 3, shell, log) and "3 of 3, three" in capsys.readouterr().out


def test_the_steps_are_the_commands_of_the_page() -> None:
    for line in (empty_root.PREPARE, journey.VERIFY, journey.CHECK, journey.VENV, journey.INSTALL, journey.ACCEPT):
        assert line in PAGE, line


@pytest.mark.parametrize("processor", empty_root.ARCHITECTURES)
def test_a_rehearsal_builds_where_pytorch_is(processor: str) -> None:
    with_it = [step.command for step in journey.journey(processor, ("serve", "page", "demo"), False)]
    without = [step.command for step in journey.journey(processor, ("serve", "page", "simulate"), False)]
    assert f"{journey.BIN}/python -m demo.run" in with_it
    assert f"{journey.BIN}/python -m demo.run --bundle bundles/demo" in without
    assert journey.ACCEPT in with_it and journey.ACCEPT in without


def test_a_rehearsal_of_few_extras_has_the_steps_that_these_are_enough_for() -> None:
    names = [step.name for step in journey.journey("x86_64", ("client",), False)]
    assert names[-3:] == ["every command", "nothing left in the home", "client alone"] and "prove it" not in names
    whole = [step.name for step in journey.journey("x86_64", tuple(journey.OFFLINE), False)]
    assert {"our kernels", "serve, report", "a study by DICOM", "the console by HTTP", "prove it"} <= set(whole)


def test_a_command_is_started_where_its_extras_are() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert set(journey.COMMANDS) == set(scripts)

    def started(*extras: str) -> set[str]:
        lines = journey.journey("x86_64", extras, False)[4].command
        return set(re.findall(r"echovlm-\w+(?= --version)", lines))

    assert started("client") == {"echovlm-report"}
    assert started(*journey.OFFLINE) == set(scripts) - {"echovlm-build"}, "PyTorch is for building alone"
    assert started(*journey.IMPORTS) == set(scripts)


def test_a_signed_release_is_verified_by_its_signature_first() -> None:
    (verify,) = (step.command for step in journey.journey("x86_64", (), True) if step.name == "verify the release")
    assert verify == f"{journey.VERIFY} && {journey.CHECK}"


def test_every_extra_is_installed_or_measured_or_not_for_a_target() -> None:
    assert set(journey.IMPORTS).isdisjoint(journey.GPU)
    assert {*journey.IMPORTS, *journey.GPU, *NOT_INSTALLED} == set(EXTRAS)
    for extra in (*journey.IMPORTS, *journey.GPU):
        assert f"`{extra}`" in PAGE, f"docs/release.md says nothing of {extra}"


def test_this_computers_processor_needs_no_emulator() -> None:
    assert namespace.emulator_for(platform.machine(), None) is None


def test_an_emulator_that_needs_libraries_is_refused(tmp_path: Path) -> None:
    found = tmp_path / "qemu"
    found.write_bytes(b"\x7fELF" + bytes(500) + b"/lib64/ld-linux-x86-64.so.2")
    with pytest.raises(NotPossibleHere, match="needs shared libraries"):
        namespace.emulator_for("other", found)
    found.write_bytes(b"\x7fELF" + bytes(500))
    assert namespace.emulator_for("other", found) == found
    with pytest.raises(NotPossibleHere, match="no emulator for other here: install qemu-user"):
        namespace.emulator_for("other", None)


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace.shutil, "which", lambda tool: None if tool == "ip" else tool)
    with pytest.raises(NotPossibleHere, match=r"apt-get install --yes iproute2"):
        namespace.check_tools()


def test_a_folder_that_exists_is_refused_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "check_tools", lambda: None)
    assert command.main([str(tmp_path), "--processor", platform.machine(), "--place", str(tmp_path)]) == 2
    assert "exists: delete it" in capsys.readouterr().err and tmp_path.exists()


def test_a_folder_without_a_release_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "check_tools", lambda: None)
    place = tmp_path / "place"
    assert command.main([str(tmp_path), "--processor", platform.machine(), "--place", str(place)]) == 2
    assert "has 0 wheels" in capsys.readouterr().err and not place.exists()
