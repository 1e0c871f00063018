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


def strings(file: Path) -> set[object]:
    """Every constant of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


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
from echovlm_edge.runtime.client.wire import connection as client
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


def test_a_server_is_started_in_one_way() -> None:
    """As a process, by `benchmarks.served`: what waits for it and ends it is written once."""
    files = [file for folder in ("tests", "benchmarks", "demo", "examples") for file in (ROOT / folder).rglob("*.py")]
    starters = {
        str(file.relative_to(ROOT))
        for file in files
        if "subprocess" in imported(file) and "--port-file" in strings(file)
    }
    assert starters - {"tests/test_house.py"} == {"benchmarks/served.py"}


# From the ground up: a room imports from those before it alone.
ROOMS = (
    *("contracts", "facts", "resources", "formats", "bundle", "imaging", "prompting", "backends", "drafting", "engine"),
    *("observability", "clinical", "client", "serving", "dicom_node", "ray_serve", "profiling", "evaluation", "doctor"),
)
RUNTIME = "echovlm_edge.runtime"


def module_imports(file: Path, modules: set[str]) -> set[str]:
    """The runtime's own modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(RUNTIME):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in inside}
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """What each module of the runtime imports of it."""
    files = {}
    for file in (ROOT / "runtime").rglob("*.py"):
        parts = file.relative_to(ROOT / "runtime").with_suffix("").parts
        files[".".join((RUNTIME, *(part for part in parts if part != "__init__")))] = file
    return {name: module_imports(file, set(files)) for name, file in files.items()}


def test_rooms_import_downwards(graph: dict[str, set[str]]) -> None:
    def room(module: str) -> str:
        return module.removeprefix(RUNTIME).strip(".").partition(".")[0]

    assert {room(module) for module in graph} == {"", *ROOMS}
    for module, imports in graph.items():
        for other in imports:
            assert room(other) in ROOMS[: ROOMS.index(room(module)) + 1], f"{module} imports {other}, a room above it"


def test_no_modules_import_each_other_in_a_circle(graph: dict[str, set[str]]) -> None:
    left = dict(graph)
    while ready := [module for module, imports in left.items() if not (imports & left.keys()) - {module}]:
        for module in ready:
            del left[module]
    assert not left, f"these import each other: {sorted(left)}"


def test_a_listing_of_the_runtime_reads_at_once() -> None:
    entries = [entry.name for entry in (ROOT / "runtime").iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= 20
    stems = [entry.removesuffix(".py") for entry in entries]
    alike = [(one, other) for one in stems for other in stems if one != other and other.startswith(one.rstrip("s"))]
    assert not alike


WITHOUT = {
    "client": ("onnxruntime", "PIL", "pydantic", "jinja2", "tokenizers", f"{RUNTIME}.engine", f"{RUNTIME}.backends"),
    "client.report_command": ("onnxruntime", "PIL", "pydantic", "jinja2", f"{RUNTIME}.engine", f"{RUNTIME}.serving"),
    "dicom_node.node": (
        "onnxruntime",
        "tokenizers",
        "jinja2",
        f"{RUNTIME}.engine",
        f"{RUNTIME}.backends",
        f"{RUNTIME}.imaging",
    ),
    "profiling.compare_command": ("onnxruntime", "grpc", "PIL", f"{RUNTIME}.engine", f"{RUNTIME}.client"),
    "evaluation.command": (
        "onnxruntime",
        "nltk",
        "jieba",
        "sacrebleu",
        "bert_score",
        f"{RUNTIME}.engine",
        f"{RUNTIME}.backends",
    ),
}


@pytest.mark.parametrize("module", WITHOUT)
def test_what_is_light_stays_light(module: str) -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in WITHOUT[module])
    program = f"import sys\n{blocked}import {RUNTIME}.{'client.wire.connection' if module == 'client' else module}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
