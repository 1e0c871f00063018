"""Tests that need an NVIDIA GPU: skipped with the reason where there is none; `--gpu-results FILE` writes what was seen."""

from __future__ import annotations

import datetime
import importlib
import platform
from pathlib import Path

import pytest

from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

HERE = Path(__file__).parent
NOTES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-results", type=Path, metavar="FILE", help="append the GPU tests' outcomes, in Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTES] = []


@pytest.fixture(scope="session")
def gpu() -> CudaDevice:
    """This machine's GPU."""
    try:
        return CudaDevice()
    except NotPossibleHere as reason:
        pytest.skip(str(reason))


@pytest.fixture
def note(request: pytest.FixtureRequest) -> object:
    """Keeps a sentence, a measurement for example, for `--gpu-results` and the archive of `echovlm-accept --checks`."""
    name, properties = request.node.name, request.node.user_properties

    def keep(sentence: str) -> None:
        request.config.stash[NOTES].append(f"{name}: {sentence}")
        properties.append((f"note {len(properties)}", sentence))

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write machine, versions and outcomes, if any test had a GPU."""
    file = config.getoption("gpu_results", None)
    outcomes = {
        outcome: [report for report in terminalreporter.stats.get(outcome, []) if f"{HERE.name}/" in report.nodeid]
        for outcome in ("passed", "failed", "error", "skipped")
    }
    if file is None or not (outcomes["passed"] or outcomes["failed"]):
        return
    lines = [f"## {_machine()}, {datetime.date.today()}", ""]
    lines += [f"- {_version(name)}" for name in ("tensorrt_rtx", "tensorrt", "onnxruntime", "triton") if _version(name)]
    lines += ["", "| outcome | tests |", "| --- | --- |"]
    lines += [f"| {outcome} | {len(reports)} |" for outcome, reports in outcomes.items() if reports]
    lines += ["", *(f"- FAILED {report.nodeid}" for report in outcomes["failed"] + outcomes["error"])]
    lines += [f"- skipped {report.nodeid}: {report.longrepr[2]}" for report in outcomes["skipped"]]  # type: ignore[index]
    lines += [f"- {sentence}" for sentence in config.stash[NOTES]]
    with file.open("a", encoding="utf-8") as results:
        results.write("\n".join([*lines, "", ""]))


def _machine() -> str:
    device = CudaDevice()
    return f"{device.name} (SM {device.compute_capability}), {platform.machine()}"


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.import_module(name).__version__}"
    except ImportError:
        return ""
