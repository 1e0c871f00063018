"""Nothing of ours tells a vendor about the device that it runs on: no identifier is kept, and nothing waits to be sent."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

# What a continuous integration is known by, which some libraries do not report.
NOT_OF_A_USER = ("ORT_", "RAY_", "HF_", "GITHUB_", "TF_BUILD", "CI", "XDG_", "HOME")
COMMANDS = sorted(script.name for script in entry_points(group="console_scripts") if script.name.startswith("echovlm-"))


def left_in_a_home(tmp_path: Path, *words: str) -> list[str]:
    """Run Python as a user whose home is empty; returns the files that it left there."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OF_A_USER)}
    done = subprocess.run(
        [sys.executable, *words],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_leaves_nothing_in_a_home(command: str, tmp_path: Path) -> None:
    assert left_in_a_home(tmp_path, str(Path(sys.executable).with_name(command)), "--help") == []


@pytest.mark.parametrize(
    "module",
    ["echovlm_edge.runtime.backends.onnxruntime", "echovlm_edge.runtime.engine.report_engine", "benchmarks.attention"],
)
def test_a_program_that_uses_the_engine_leaves_nothing_in_a_home(module: str, tmp_path: Path) -> None:
    assert left_in_a_home(tmp_path, "-c", f"import {module}, onnxruntime") == []


def test_what_an_operator_has_set_stays() -> None:
    program = "import os\nos.environ['ORT_DISABLE_TELEMETRY'] = '0'\nimport echovlm_edge\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "0\n"


def test_rays_usage_statistics_are_off(tmp_path: Path) -> None:
    program = (
        "import echovlm_edge\nfrom ray._common.usage import usage_lib\nassert not usage_lib.usage_stats_enabled(), 'on'"
    )
    assert left_in_a_home(tmp_path, "-c", program) == []
