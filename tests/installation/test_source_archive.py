"""The source archive holds what a wheel is built from: its wheel is the tree's, file by file.

Both are built as where no C++ compiler is, which takes seconds, and must work there all the same.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("scikit_build_core", "grpc_tools")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
missing += [name for name in ("cmake", "ninja", "git") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def built(kind: str, source: Path, output: Path) -> Path:
    """An archive of a source folder: kind `sdist` or `wheel`."""
    program = f"import sys\nfrom scikit_build_core.build import build_{kind} as build\nbuild(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", program, str(output)],
        cwd=source,
        env={**os.environ, "CXX": "/no/compiler"},
        check=True,
        capture_output=True,
    )
    (archive,) = output.iterdir()
    return archive


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows or would take, without what was built from them."""
    copy = tmp_path_factory.mktemp("tree") / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).exists() and (name.startswith("tests/gpu/") or not name.startswith(("tests/", "docs/"))):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def from_tree(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the tree's wheel."""
    return contents(built("wheel", tree, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def unpacked(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive, as a user unpacks it."""
    with tarfile.open(built("sdist", tree, tmp_path_factory.mktemp("sdist"))) as archive:
        folder = tmp_path_factory.mktemp("unpacked")
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


def contents(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_archives_wheel_is_the_trees(from_tree: dict[str, bytes], unpacked: Path, tmp_path: Path) -> None:
    from_archive = contents(built("wheel", unpacked, tmp_path))
    assert from_archive.keys() == from_tree.keys()
    assert [name for name in from_tree if from_archive[name] != from_tree[name]] == []


def test_a_wheel_holds_rooms_stubs_and_commands(from_tree: dict[str, bytes]) -> None:
    assert {
        "echovlm/v1/report_pb2.py",
        "echovlm/v1/report_pb2_grpc.py",
        "echovlm_edge/commands.py",
        "echovlm_edge/export/build_engines.py",
        "echovlm_edge/plugins/dual_path_moe/native.py",
        "echovlm_edge/py.typed",
        "echovlm_edge/runtime/client/report_client.py",
        "echovlm_edge/runtime/evaluation/drawing/evaluation.html.jinja",
        "echovlm_edge/runtime/profiling/drawing/page.html.jinja",
        "echovlm_edge/runtime/serving/http/console/page/index.html",
        "echovlm_edge/runtime/serving/http/console/page/main.js",
        "echovlm_edge/runtime/serving/http/console/page/styles/theme.css",
    } <= from_tree.keys()
    assert not [name for name in from_tree if name.startswith(("tests", "demo", "benchmarks", "runtime", "export"))]


def test_without_a_compiler_nothing_is_compiled(from_tree: dict[str, bytes]) -> None:
    assert not [name for name in from_tree if name.endswith(".so")]


def test_the_archive_brings_the_tests_of_a_gpu_and_no_others(unpacked: Path) -> None:
    brought = {path.name for path in (unpacked / "tests/gpu").glob("*.py")}
    assert brought == {path.name for path in (ROOT / "tests/gpu").glob("*.py")}
    assert [path.name for path in (unpacked / "tests").iterdir()] == ["gpu"]


def test_the_archive_has_no_links_out_of_it(unpacked: Path) -> None:
    assert [path for path in unpacked.rglob("*") if path.is_symlink()] == []
