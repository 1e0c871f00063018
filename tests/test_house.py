"""The house rules: the runtime stands without torch, imports go one way, no file is a drawer."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "runtime": (
        "torch",
        "transformers",
        "onnx",
        "onnx_ir",
        "onnxscript",
        "safetensors",
        "echovlm_edge.export",
        "demo",
        "benchmarks",
    ),
    "plugins": ("torch", "echovlm_edge.export", "echovlm_edge.runtime", "demo", "benchmarks"),
    "export": ("demo", "benchmarks"),
}


def imported(file: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        if "cuda" in file.parts:
            continue  # kernels are built with torch's tools and never imported by what serves
        for name in imported(file):
            for forbidden in FORBIDDEN[folder]:
                assert name != forbidden and not name.startswith(forbidden + "."), f"{file} imports {name}"


def test_the_runtime_serves_without_torch(golden_bundle: Path) -> None:
    program = """
import sys
for name in ("torch", "transformers", "onnx", "safetensors", "optimum"):
    sys.modules[name] = None
from pathlib import Path
from echovlm_edge.runtime.client import report_client as client
from echovlm_edge.runtime.client import report_command
from echovlm_edge.runtime.serving.transport import server
from echovlm_edge.runtime.doctor import command as doctor
from echovlm_edge.runtime.profiling import command as profile
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.contracts.request import GenerationRequest, Sampling
from echovlm_edge.runtime.imaging.sample import sample_image
*_, last = ReportEngine.open(Path(sys.argv[1])).generate(GenerationRequest("Why?", (sample_image(),), Sampling(4)))
print(len(last.token_ids))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(golden_bundle)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "4\n", done.stderr


def test_no_file_is_a_drawer() -> None:
    names = {
        path.stem for folder in (*FORBIDDEN, "demo", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")
    }
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_no_file_shadows_the_standard_library() -> None:
    """A folder whose file is run as a script stands first on Python's path."""
    for folder in (*FORBIDDEN, "benchmarks", "demo", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert file.stem not in sys.stdlib_module_names - {"__main__"}, f"{file} has the name of a standard module"
