"""What pyproject.toml brings to whom: a client little, and nobody two ONNX Runtimes that overwrite each other."""

from __future__ import annotations

import re
import tomllib
from itertools import combinations
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
WHICH_ONNX_RUNTIME = {"serve", "serve-gpu"}  # one is installed instead of the other
OF_A_CLIENT = {"googleapis-common-protos", "grpcio", "protobuf"}


def package(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return name[0].lower().replace("_", "-").replace(".", "-")


def brought(extra: str) -> set[str]:
    """The packages that an extra installs, those of the extras it stands for included."""
    found = set()
    for requirement in EXTRAS[extra]:
        own = re.fullmatch(r"echovlm-edge\[(.*)\]", requirement)
        found |= set().union(*map(brought, own[1].split(","))) if own else {package(requirement)}
    return found


def test_a_client_installs_the_protocol_and_nothing_else() -> None:
    assert {package(requirement) for requirement in PROJECT["dependencies"]} == OF_A_CLIENT


def test_nobody_gets_two_onnx_runtimes() -> None:
    cpu = {extra for extra in EXTRAS if "onnxruntime" in brought(extra)}
    gpu = {extra for extra in EXTRAS if "onnxruntime-gpu" in brought(extra)}
    assert cpu == {"serve", "demo"}
    assert gpu == {"serve-gpu", "gpu"}
    for one, other in combinations(set(EXTRAS) - {"serve", "demo"}, 2):
        assert "onnxruntime" not in brought(one) | brought(other), f"serve-gpu is combined with {one},{other}"


def test_the_first_run_brings_nothing_that_it_does_not_use() -> None:
    unused = {"ray", "playwright", "triton", "dashscope", "tensorrt-rtx-cu13", "matplotlib", "transformers"}
    assert not brought("demo") & (unused | {"optimum", "pytest", "mypy", "av", "highdicom", "kernel-lens"})


@pytest.mark.parametrize("extra", ["gpu", "export", "clinical", "rtx", "tensorrt", "page", "ray", "video", "jpegxl"])
def test_names_of_the_past_keep_working(extra: str) -> None:
    assert brought(extra)
    assert extra != "gpu" or brought("gpu") == brought("serve-gpu")


def test_one_package_has_one_lowest_version() -> None:
    told: dict[str, set[str]] = {}
    for requirement in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]:
        if not requirement.startswith("echovlm-edge["):
            told.setdefault(package(requirement), set()).add(requirement)
    assert {name: lines for name, lines in told.items() if len(lines) > 1} == {}


def test_what_is_tested_is_pinned() -> None:
    pinned = {
        package(line)
        for line in (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    not_on_a_cpu = {"onnxruntime-gpu"}
    assert set().union(*map(brought, EXTRAS)) - pinned == not_on_a_cpu
