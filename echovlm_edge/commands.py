"""Where the installed commands begin: each imports its program when it is called, and what is not installed is said in one sentence."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution

from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint

OWN = ("echovlm", "echovlm_edge")
ABSENT = re.compile(r"(lib[\w+-]+\.so[.\d]*): cannot open shared object file")  # what the dynamic loader says
PACKAGES = {"libstdc++.so.6": "libstdc++6", "libgcc_s.so.1": "libgcc-s1"}  # a minimal Debian has neither


def build(arguments: list[str] | None = None) -> int:
    """`echovlm-build`: turn a checkpoint into a bundle; returns the exit code."""
    return _run("echovlm-build", "echovlm_edge.export.build_engines", f"export,{_serving()}", arguments)


def serve(arguments: list[str] | None = None) -> int:
    """`echovlm-serve`: serve a bundle; returns the exit code."""
    return _run("echovlm-serve", "echovlm_edge.runtime.serving.supervision.serve_command", _serving(), arguments)


def report(arguments: list[str] | None = None) -> int:
    """`echovlm-report`: ask a server about images; returns the exit code."""
    return _run("echovlm-report", "echovlm_edge.runtime.client.report_command", "client", arguments)


def dicom(arguments: list[str] | None = None) -> int:
    """`echovlm-dicom`: receive studies by DICOM and deliver reports; returns the exit code."""
    return _run("echovlm-dicom", "echovlm_edge.runtime.dicom_node.command", "dicom", arguments)


def profile(arguments: list[str] | None = None) -> int:
    """`echovlm-profile`: measure, compare and draw; returns the exit code."""
    return _run("echovlm-profile", "echovlm_edge.runtime.profiling.command", _serving(), arguments)


def evaluate(arguments: list[str] | None = None) -> int:
    """`echovlm-evaluate`: ask a model the questions of a data set, score its answers, compare; returns the exit code."""
    return _run("echovlm-evaluate", "echovlm_edge.runtime.evaluation.command", f"evaluate,{_serving()}", arguments)


def doctor(arguments: list[str] | None = None) -> int:
    """`echovlm-doctor`: examine this machine; returns the exit code."""
    return _run("echovlm-doctor", "echovlm_edge.runtime.doctor.command", _serving(), arguments)


def accept(arguments: list[str] | None = None) -> int:
    """`echovlm-accept`: prove a bundle on the machine that it is for; returns the exit code."""
    return _run("echovlm-accept", "echovlm_edge.runtime.doctor.acceptance.command", f"page,{_serving()}", arguments)


def bundle(arguments: list[str] | None = None) -> int:
    """`echovlm-bundle`: install, roll back and sign bundles; returns the exit code."""
    return _run("echovlm-bundle", "echovlm_edge.runtime.bundle.command", _serving(), arguments)


def build_on_device(arguments: list[str] | None = None) -> int:
    """`build_on_device.sh`, which a bundle for a device has: build its engines there; returns the exit code."""
    return _run("build_on_device.sh", "echovlm_edge.export.device_bundle", f"tensorrt,{_serving()}", arguments)


def _run(command: str, module: str, extras: str, arguments: list[str] | None) -> int:
    def program() -> int:
        try:
            return int(import_module(module).main(arguments))
        except ModuleNotFoundError as missing:
            name = (missing.name or "").partition(".")[0]
            if not name or name in OWN:
                raise  # a fault of the package, not of the installation
            raise NotPossibleHere(
                f"{command} needs {name}, which is not installed: {install_hint(extras)}."
            ) from missing
        except ImportError as failed:
            library = _absent_library(failed)
            if not library:
                raise
            hint = f" (Debian and Ubuntu: apt-get install {PACKAGES[library]})" if library in PACKAGES else ""
            raise NotPossibleHere(f"{command} needs the library {library}, which this system lacks{hint}.") from failed

    return run_command(program)


def _absent_library(failed: BaseException | None) -> str:
    """Return the shared library whose absence caused a failure, or nothing."""
    while failed:
        found = ABSENT.search(str(failed))
        if found:
            return found[1]
        failed = failed.__cause__ or failed.__context__
    return ""


def _serving() -> str:
    """The extra that brings what serves: ONNX Runtime's two packages overwrite each other, so the installed one decides."""
    try:
        distribution("onnxruntime-gpu")
    except PackageNotFoundError:
        return "serve"
    return "serve-gpu"
