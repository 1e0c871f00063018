"""The acceptance's step of device tests, on a folder of real ones: what passes, fails, is skipped, crashes or hangs has its own result."""

from __future__ import annotations

import json
import math
import shutil
import time
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from echovlm_edge.runtime.bundle.manifest import Bundle, describe_file, write_manifest
from echovlm_edge.runtime.doctor.acceptance import command
from echovlm_edge.runtime.doctor.acceptance.checks import device_tests as module
from echovlm_edge.runtime.doctor.acceptance.checks.device_journal import JOURNAL
from echovlm_edge.runtime.doctor.acceptance.checks.device_tests import device_tests
from echovlm_edge.runtime.doctor.acceptance.privacy import Redaction
from echovlm_edge.runtime.doctor.acceptance.schema import Outcome, State, StepResult
from echovlm_edge.runtime.doctor.acceptance.setting import Setting, Skipped
from echovlm_edge.runtime.doctor.acceptance.steps import run_step, steps

GPU_TESTS = Path(__file__).parents[1] / "gpu"
TESTS = """
import ctypes, os, signal, time
import echovlm_edge.runtime
import pytest

def test_is_right(record_property):
    record_property("microseconds", 12.5)
    record_property("note", "at 1,000 MHz")

def test_is_wrong():
    assert 1 + 1 == 3, "the kernel is wrong"

@pytest.mark.parametrize("size", (1, 2))
def test_crashes(size):
    if size == 1:
        ctypes.string_at(0)

def test_is_killed():
    os.kill(os.getpid(), signal.SIGKILL)

def test_needs_more():
    pytest.skip("This GPU has 4 GB.")

@pytest.fixture
def broken():
    yield
    raise RuntimeError("the driver is gone")

def test_ends_badly(broken):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "checks").mkdir()
    return tmp_path / "checks"


@pytest.fixture
def setting(golden_bundle: Path, tmp_path: Path, folder: Path) -> Setting:
    return Setting(Bundle(golden_bundle), tmp_path, checks=folder)


def stepped(setting: Setting) -> StepResult:
    """Run the step as the command does."""
    (step,) = (step for step in steps(1.0, None) if step.name == module.STEP)
    return run_step(step, setting, Redaction({}))


def states(outcome: Outcome) -> dict[str, tuple[State, str]]:
    return {check.what.rpartition("::")[2].rpartition("/")[2]: (check.state, check.detail) for check in outcome.checks}


def test_every_test_has_its_result_whatever_the_others_do(folder: Path, setting: Setting) -> None:
    (folder / "test_kernels.py").write_text(TESTS)
    (folder / "test_more.py").write_text("import of_the_integrator\n\ndef test_it():\n    pass\n")
    (folder / "test_last.py").write_text("def test_runs_after_the_crashes():\n    pass\n")
    result = stepped(setting)
    found = states(result.outcome)
    ends = {name: (state.value, detail) for name, (state, detail) in found.items()}
    passed = {name for name, (state, _) in ends.items() if state == "passed"}
    assert passed == {"test_is_right", "test_crashes[2]", "test_runs_after_the_crashes"}
    assert ends["test_is_wrong"] == ("failed", "AssertionError: the kernel is wrong")
    assert ends["test_crashes[1]"] == ("failed", "It ended the process by SIGSEGV")
    assert ends["test_is_killed"] == ("failed", "It ended the process by SIGKILL")
    assert ends["test_ends_badly"] == ("failed", "RuntimeError: the driver is gone")
    assert ends["test_needs_more"] == ("skipped", "This GPU has 4 GB.")
    assert ends["test_more.py"] == ("skipped", "ModuleNotFoundError: No module named 'of_the_integrator'")
    assert "at 1,000 MHz" in ends["test_is_right"][1]
    (figure,) = result.outcome.figures
    assert (figure.name, figure.value) == ("device-tests.test_kernels.py::test_is_right.microseconds", 12.5)
    assert result.state is State.FAILED and "test_is_wrong" in result.reason
    assert not (folder / "__pycache__").exists() and {file.name for file in folder.iterdir()} == {
        *("test_kernels.py", "test_more.py", "test_last.py")
    }


def test_a_test_that_hangs_fails(folder: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEST_SECONDS", 5.0)
    (folder / "test_it.py").write_text(
        "import time\n\ndef test_hangs():\n    time.sleep(3600)\n\ndef test_runs():\n    pass\n"
    )
    found = states(device_tests(setting))
    assert found["test_hangs"] == (State.FAILED, "It took longer than 5 s, and was ended")
    assert found["test_runs"][0] is State.PASSED


@pytest.mark.parametrize(
    ("files", "reason"),
    (
        ({}, "holds no tests"),
        (
            {"conftest.py": "import os\nos.kill(os.getpid(), 9)\n"},
            "It ended the process by SIGKILL before a test began",
        ),
        ({"test_it.py": "def test(:\n"}, "SyntaxError"),
        ({"test_it.py": "import os\nos._exit(0)\n"}, "It ended the process with exit code 0 before a test began"),
        (
            {"test_it.py": "import pytest\npytest.exit('enough', returncode=0)\n"},
            "Exit: enough",
        ),
    ),
)
def test_what_holds_no_tests_fails(files: dict[str, str], reason: str, folder: Path, setting: Setting) -> None:
    for name, text in files.items():
        (folder / name).write_text(text)
    result = stepped(setting)
    assert result.state is State.FAILED and reason in result.reason


def test_the_projects_own_tests_say_why_they_are_skipped(setting: Setting, folder: Path) -> None:
    """As the source archive brings them: without the rest of tests/, and where no GPU is."""
    shutil.copytree(GPU_TESTS, folder / "gpu", ignore=shutil.ignore_patterns("__pycache__"))
    result = stepped(setting)
    assert len(result.outcome.checks) > 50
    for check in result.outcome.checks:
        assert check.detail, check.what


def test_the_installed_package_is_tested_not_the_sources_around_the_tests(setting: Setting, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "tests/gpu").mkdir(parents=True)
    (source / "echovlm_edge").mkdir()
    (source / "echovlm_edge/__init__.py").write_text("raise RuntimeError('not compiled')\n")
    (source / "benchmarks_of_it.py").write_text("VALUE = 3\n")
    (source / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')
    (source / "tests/conftest.py").write_text("import what_only_developers_have\n")
    (source / "tests/gpu/test_it.py").write_text(
        "from benchmarks_of_it import VALUE\nfrom echovlm_edge.runtime.bundle import manifest\n\n"
        "def test_it():\n    assert VALUE == 3 and manifest.CURRENT\n"
    )
    result = stepped(replace(setting, checks=source / "tests/gpu"))
    assert [(check.state, check.what) for check in result.outcome.checks] == [
        (State.PASSED, "tests/gpu/test_it.py::test_it")
    ], result


def test_the_plugin_of_the_bundle_is_the_one_that_is_tested(setting: Setting, folder: Path) -> None:
    brought = Path(shutil.copytree(setting.bundle.path, setting.folder / "with_plugin"))
    (brought / "libechovlm_plugins.so").write_bytes(b"its kernels")
    manifest = setting.bundle.manifest
    described = describe_file(brought, "libechovlm_plugins.so")
    write_manifest(brought, replace(manifest, files=(*manifest.files, described)))
    (folder / "test_it.py").write_text(
        "import os\n\ndef test_it(record_property):\n"
        f"    assert open(os.environ['{module.TESTED_PLUGIN}']).read() == 'its kernels'\n"
    )
    assert stepped(replace(setting, bundle=Bundle(brought))).state is State.PASSED


def test_without_a_folder_the_step_says_what_it_lacks(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    without = Setting(setting.bundle, setting.folder)
    monkeypatch.setattr(module, "nvidia_gpus", lambda: ())
    with pytest.raises(Skipped, match="NVML finds no NVIDIA GPU"):
        device_tests(without)
    monkeypatch.setattr(module, "nvidia_gpus", lambda: ("one",))
    with pytest.raises(Skipped, match="--checks"):
        device_tests(without)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Skipped, match=r"pytest is not installed: pip install .*checks"):
        device_tests(setting)


def test_a_test_that_ends_pytest_fails_and_the_others_run(folder: Path, setting: Setting) -> None:
    (folder / "test_it.py").write_text(
        "import os, signal\nimport pytest\n\n"
        "def test_exits():\n    os._exit(0)\n\n"
        "def test_stops():\n    pytest.exit('enough', returncode=3)\n\n"
        "def test_stops_well():\n    pytest.exit('enough', returncode=0)\n\n"
        "def test_is_interrupted():\n    os.kill(os.getpid(), signal.SIGINT)\n\n"
        "def test_runs():\n    pass\n\n"
        "def test_is_the_last():\n    os._exit(0)\n"
    )
    found = states(device_tests(setting))
    assert {name: detail for name, (state, detail) in found.items() if state is State.FAILED} == {
        "test_exits": "It ended the process with exit code 0",
        "test_stops": "It ended the process with exit code 3",
        "test_stops_well": "It ended the process with exit code 0",
        "test_is_interrupted": "It ended the process with exit code 2",
        "test_is_the_last": "It ended the process with exit code 0",
    }
    assert found["test_runs"][0] is State.PASSED


@pytest.mark.parametrize("place", ("beside", "above", "environment"))
def test_others_options_leave_no_test_out(
    place: str, folder: Path, setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "test_it.py").write_text("def test_1():\n    pass\n\ndef test_2():\n    assert False, 'it ran'\n")
    if place == "environment":
        monkeypatch.setenv("PYTEST_ADDOPTS", "-k test_1")
    else:
        where = folder if place == "beside" else folder.parent
        (where / "pytest.ini").write_text("[pytest]\naddopts = -k test_1\n")
    found = states(device_tests(setting))
    assert found["test_1"][0] is State.PASSED
    assert found["test_2"] == (State.FAILED, "AssertionError: it ran")


@pytest.mark.parametrize(
    "conftest",
    (
        "def pytest_collection_modifyitems(items):\n    del items[1:]\n",
        "import os\n\ndef pytest_runtest_logfinish(nodeid):\n    os._exit(0)\n",
    ),
)
def test_a_test_that_was_not_run_fails(conftest: str, folder: Path, setting: Setting) -> None:
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_it.py").write_text("def test_1():\n    pass\n\ndef test_2():\n    pass\n")
    found = states(stepped(setting).outcome)
    assert found["test_1"][0] is State.PASSED
    state, why = found["test_2"]
    assert state is State.FAILED and why.startswith("It was not run")


def test_a_missing_module_of_this_package_fails(folder: Path, setting: Setting) -> None:
    own = "echovlm_edge.runtime.no_such_module"
    (folder / "test_imports.py").write_text(f"import {own}\n\ndef test_it():\n    pass\n")
    (folder / "test_asks.py").write_text(f"import pytest\npytest.importorskip('{own}')\n")
    (folder / "test_later.py").write_text(
        f"import pytest\n\ndef test_asks_later():\n    pytest.importorskip('{own}')\n\n"
        "def test_asks_for_another():\n    pytest.importorskip('of_the_integrator')\n"
    )
    (folder / "test_says.py").write_text("raise RuntimeError('ModuleNotFoundError is what it says')\n")
    found = states(device_tests(setting))
    for name in ("test_imports.py", "test_asks.py", "test_asks_later"):
        state, why = found[name]
        assert state is State.FAILED and f"No module named '{own}'" in why, name
    assert found["test_says.py"][0] is State.FAILED
    assert found["test_asks_for_another"][0] is State.SKIPPED


def test_what_is_no_number_is_written_as_text(folder: Path, setting: Setting) -> None:
    (folder / "test_it.py").write_text(
        "def test_it(record_property):\n"
        "    record_property('error', float('nan'))\n    record_property('seconds', float('inf'))\n"
        "    record_property('count', 10**400)\n    record_property('note', 'of \\udc80')\n    record_property('good', 2.5)\n"
    )
    result = stepped(setting)
    json.dumps(asdict(result), allow_nan=False).encode()
    assert [figure.value for figure in result.outcome.figures] == [2.5]
    (check,) = result.outcome.checks
    assert "error: nan" in check.detail and "seconds: inf" in check.detail and check.detail.encode()
    assert math.isfinite(result.seconds) and check.state is State.PASSED


def alive(process: int) -> bool:
    """Whether a process still runs; one that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_children_of_a_test_end_with_the_step(folder: Path, setting: Setting) -> None:
    (folder / "test_it.py").write_text(
        "import pathlib, subprocess\n\ndef test_it():\n"
        f"    pathlib.Path({str(folder / 'child')!r}).write_text(str(subprocess.Popen(['sleep', '300']).pid))\n"
    )
    assert device_tests(setting).checks[0].state is State.PASSED
    child, deadline = int((folder / "child").read_text()), time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_a_test_that_forks_and_returns_runs_no_test_twice(folder: Path, setting: Setting) -> None:
    (folder / "test_it.py").write_text(
        "import os, pathlib\n\nRAN = pathlib.Path(__file__).with_name('ran')\n\n"
        "def test_forks():\n    child = os.fork()\n    if child:\n        os.waitpid(child, 0)\n\n"
        "def test_runs():\n    with RAN.open('a') as file:\n        file.write('once.')\n"
    )
    found = states(device_tests(setting))
    assert {state for state, _ in found.values()} == {State.PASSED} and len(found) == 2
    assert (folder / "ran").read_text() == "once."


def test_half_a_line_in_the_journal_is_no_result(folder: Path, setting: Setting) -> None:
    (folder / "test_it.py").write_text(
        "import os, signal\n\ndef test_is_killed():\n"
        f"    with open(os.environ['{JOURNAL}'], 'a') as file:\n"
        '        file.write(\'{"ended": "test_it.py::test_is_ki\')\n'
        "    os.kill(os.getpid(), signal.SIGKILL)\n\n"
        "def test_runs():\n    pass\n"
    )
    found = states(device_tests(setting))
    assert found["test_is_killed"] == (State.FAILED, "It ended the process by SIGKILL")
    assert found["test_runs"][0] is State.PASSED and len(found) == 2


def test_the_archive_has_names_results_and_reasons_alone(
    golden_bundle: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "test_it.py").write_text(
        "def test_it():\n    print('said by ' + 'the test')\n    assert not __file__, 'found ' + __file__\n"
    )
    (tmp_path / "none.toml").touch()
    only = [step for step in steps(1.0, None) if step.name == module.STEP]
    monkeypatch.setattr(command, "steps", lambda minutes, modes: only)
    out = tmp_path / "out"
    options = ("--bundle", golden_bundle, "--output", out, "--limits", tmp_path / "none.toml", "--checks", folder)
    assert command.main([*map(str, options)]) == 1
    (path,) = out.glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist()}
    for name, text in texts.items():
        for word in (str(folder), "said by the test", "rootdir"):
            assert word not in text, name
    assert "found CHECKS/test_it.py" in texts["acceptance.json"]
    assert "said by the test" in (out / module.OUTPUT).read_text()
