"""A program sees only some packages: the client works with few, and a command that lacks one names it and how to get it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from echovlm_edge.runtime.contracts.extras import install_hint

# Refuses what is neither Python's nor among ALLOWED, as though it were not installed.
ONLY = """
import sys
from importlib.abc import MetaPathFinder

class Only(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ALLOWED or top.startswith("_editable_"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names]:
    if not name.startswith(("_editable_", "__")):
        del sys.modules[name]
sys.meta_path.insert(0, Only())
"""
CLIENT = ("google", "grpc", "typing_extensions", "echovlm", "echovlm_edge")  # grpcio brings typing_extensions
NEEDS = {
    "build": "export,serve",
    "serve": "serve",
    "bundle": "serve",
    "report": "client",
    "dicom": "dicom",
    "profile": "serve",
    "evaluate": "evaluate,serve",
    "doctor": "serve",
}


def ran(program: str, allowed: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """A program in a Python that has the allowed packages alone."""
    whole = f"ALLOWED = {allowed!r}\n{ONLY}\n{program}"
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False, timeout=60)


def ran_whole(program: str) -> subprocess.CompletedProcess[str]:
    """A program in this Python with all its packages."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)


def command(name: str, *arguments: str) -> str:
    """A program that runs an installed command."""
    (script,) = entry_points(group="console_scripts", name=f"echovlm-{name}")
    module, _, function = script.value.partition(":")
    return f"from {module} import {function}\nsys.exit({function}({list(arguments)!r}))"


@pytest.mark.parametrize(
    "module",
    ["report_client", "sending", "wire.attempts", "cine_cutting", "image_folder"],
)
def test_the_client_needs_no_package_but_its_own(module: str) -> None:
    done = ran(f"import echovlm_edge.runtime.client.{module}", CLIENT)
    assert done.returncode == 0, done.stderr


def test_a_client_without_numpy_makes_a_request() -> None:
    program = """
sys.modules["numpy"] = None
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, Sampling
print(ReportRequest(sampling=Sampling(4)).sampling.max_new_tokens, ImageInput(b"", selection=FrameSelection((1,))).name)
"""
    done = ran(program, CLIENT)
    assert done.stdout == "4 image 1\n", done.stderr


@pytest.mark.parametrize("name", NEEDS)
def test_a_command_without_its_extra_says_what_to_install(name: str) -> None:
    done = ran(command(name, "--help"), CLIENT)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: echovlm-{name} needs ")
    assert line.endswith(f", which is not installed: {install_hint(NEEDS[name])}.")


@pytest.mark.parametrize(
    "missing", ["onnxruntime", "PIL", "tokenizers", "pydantic", "prometheus_client", "grpc_health"]
)
def test_a_server_without_one_package_names_it(missing: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules[{missing!r}] = None\n{command('serve', '--help')}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: echovlm-serve needs {missing}, which is not installed: {install_hint('serve')}.\n"


def test_a_library_that_the_system_lacks_is_named() -> None:
    """A minimal Debian has no C++ library; numpy says so in a page of text."""
    program = """
import sys
from importlib.abc import MetaPathFinder

class Lacking(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            try:
                raise ImportError("libstdc++.so.6: cannot open shared object file: No such file or directory")
            except ImportError as first:
                raise ImportError("IMPORTANT: PLEASE READ THIS FOR ADVICE") from first

sys.meta_path.insert(0, Lacking())
"""
    done = ran_whole(f"{program}\n{command('doctor', '--help')}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: echovlm-doctor needs the library libstdc++.so.6, which this system lacks "
        "(Debian and Ubuntu: apt-get install libstdc++6).\n"
    )


def test_a_doctor_without_onnx_runtime_names_it() -> None:
    """It is asked about late, when the doctor is at work."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.modules['onnxruntime'] = None\n{command('doctor')}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: echovlm-doctor needs onnxruntime, which is not installed: {install_hint('serve')}.\n"


def test_a_broken_package_is_not_a_missing_one() -> None:
    """A module of our own that is gone is a fault to be seen whole."""
    program = (
        f"import sys\nsys.modules['echovlm_edge.runtime.client.picture_list'] = None\n{command('report', '--help')}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "picture_list" in done.stderr and "pip install" not in done.stderr


def test_the_cluster_without_its_packages_says_what_to_install() -> None:
    for missing in ("ray", "pydantic"):
        program = f"import runpy, sys\nsys.modules[{missing!r}] = None\nrunpy.run_path('deploy/ray_serve.py')"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2, done.stderr
        assert done.stderr == (
            f"error: deploy/ray_serve.py needs {missing}, which is not installed: {install_hint('ray,serve')}, on every node.\n"
        )
