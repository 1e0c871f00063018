"""`build_on_device.sh` as a stranger runs it: what it checks first, what it says, and how it continues after it was killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from echovlm_edge.export import device_bundle, device_checks
from echovlm_edge.export.devices import ORIN, THOR
from echovlm_edge.export.engines.tensorrt_module import open_tensorrt
from echovlm_edge.plugins.dual_path_moe.library import plugin_path
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle, describe_file, write_manifest
from echovlm_edge.runtime.bundle.signature import SecretKey, sign_file
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.machine_memory import MachineMemory
from tests.conftest import BuildBundle
from tests.export.test_tensorrt_engines import DEMO, needs_tensorrt
from tests.support.signing import new_keys

RTX = ("--module", "tensorrt_rtx")  # in the place of the device's TensorRT
KILLED_AFTER_AN_ENGINE = """
import os, signal, sys
from echovlm_edge.export import device_bundle
keep = device_bundle._keep
def killed(*arguments):
    keep(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
device_bundle._keep = killed
sys.exit(device_bundle.main(sys.argv[1:]))
"""


@pytest.fixture(scope="session")
def for_device(build_bundle: BuildBundle) -> Path:
    return build_bundle(DEMO, target="jetson-orin", precision="int4", max_sequence=512)


@pytest.fixture
def bundle(for_device: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(for_device, tmp_path / "bundle"))


def script(bundle: Path, *arguments: object, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = ["sh", bundle / "build_on_device.sh", *arguments]
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)


@needs_tensorrt
def test_the_script_says_what_it_builds_and_what_is_next(bundle: Path, tmp_path: Path) -> None:
    keys = new_keys(tmp_path)
    sign_file(bundle / MANIFEST, SecretKey.read(keys.secret))
    done = script(bundle, *RTX, "--require-signature", keys.public)
    assert done.returncode == 0, done.stderr
    for number, part in enumerate(("vision_encoder", "projector", "decoder"), 1):
        assert f"Engine {number} of 3, {part}\n" in done.stderr
    assert f"Install it: echovlm-bundle install {bundle} FOLDER" in done.stdout
    assert f"The signature was of the bundle without engines: echovlm-bundle sign {bundle}" in done.stdout
    assert Bundle(bundle, verify=True).manifest.finish_with is None
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", keys.public.name, keys.secret.name}


@needs_tensorrt
def test_the_plugin_of_the_bundle_is_loaded_from_wherever_the_script_is_called(bundle: Path) -> None:
    manifest = Bundle(bundle, finished=False).manifest
    environment = {**os.environ, "PYTHON": sys.executable}

    def built() -> subprocess.CompletedProcess[str]:
        described = describe_file(bundle, device_bundle.PLUGIN)
        write_manifest(bundle, replace(manifest, files=(*manifest.files, described)))
        command = ["sh", "./build_on_device.sh", *RTX]
        return subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True, check=False)

    (bundle / device_bundle.PLUGIN).write_bytes(b"of another processor")
    done = built()
    assert done.returncode == 2 and f"The plugin {bundle / device_bundle.PLUGIN} cannot be loaded" in done.stderr
    assert "build it with a --device-plugin for this machine" in done.stderr
    shutil.copyfile(str(plugin_path()), bundle / device_bundle.PLUGIN)
    done = built()
    assert done.returncode == 0, done.stderr


@needs_tensorrt
def test_a_build_that_was_killed_continues_with_the_next_engine(bundle: Path, tmp_path: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    for number in (1, 2):
        command = [sys.executable, "-c", KILLED_AFTER_AN_ENGINE, str(bundle), *RTX]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert killed.stderr.count("built before") == number - 1
        assert (bundle / MANIFEST).read_bytes() == before and Bundle(bundle, verify=True, finished=False)
    partial = tmp_path / ".bundle.partial"
    (damaged,) = partial.glob("projector.engine")
    damaged.write_bytes(damaged.read_bytes()[:-1])  # as a power failure leaves it
    done = script(bundle, *RTX)
    assert done.returncode == 0, done.stderr
    assert "vision_encoder: built before" in done.stderr and done.stderr.count("built before") == 1
    manifest = Bundle(bundle, verify=True).manifest
    assert {file.name for file in bundle.iterdir()} == {MANIFEST} | {file.name for file in manifest.all_files()}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_wrong_python_is_named(bundle: Path, tmp_path: Path) -> None:
    old, bare = tmp_path / "python3.10", tmp_path / "python3.12"
    old.write_text("#!/bin/sh\nexit 1\n")
    bare.write_text('#!/bin/sh\ncase "$2" in *version*) exit 0 ;; *) exit 1 ;; esac\n')
    for python, words in ((old, "is not Python 3.11 or newer"), (bare, "has no echovlm-edge")):
        python.chmod(0o755)
        done = script(bundle, python=str(python))
        assert done.returncode == 2 and words in done.stderr and f"sh {bundle / 'build_on_device.sh'}" in done.stderr


def test_an_unsigned_bundle_is_not_built(bundle: Path, tmp_path: Path) -> None:
    done = script(bundle, "--require-signature", new_keys(tmp_path).public)
    assert done.returncode == 2 and f"error: {bundle / MANIFEST} is not signed" in done.stderr


def test_a_missing_tensorrt_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    release = tmp_path / "etc/nv_tegra_release"
    release.parent.mkdir()
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n")
    with pytest.raises(NotPossibleHere, match=r"L4T 36\.4\.3, JetPack 6 or older"):
        device_checks.check_module("tensorrt", tmp_path)
    release.write_text("# R39 (release), REVISION: 0.0, GCID: 1, BOARD: generic\n")
    device_checks.check_module("tensorrt", tmp_path)
    with pytest.raises(NotPossibleHere, match="python3-libnvinfer"):
        open_tensorrt("tensorrt")


@needs_tensorrt
@pytest.mark.parametrize(
    ("changes", "capability", "free", "words"),
    (
        ({"version": "10.2.0"}, ORIN.compute_capability, 10**12, r"TensorRT 10\.2\.0 is too old: 10\.3"),
        (
            {},
            THOR.compute_capability,
            10**12,
            r"jetson-orin \(compute capability 8\.7\), and this machine's GPU has 11\.0",
        ),
        ({}, ORIN.compute_capability, 10**6, r"The engines need 0\.0 GB next to the graphs and .* has 0\.0 GB free"),
    ),
)
def test_what_cannot_end_well_does_not_begin(
    bundle: Path,
    changes: dict[str, Any],
    capability: tuple[int, int],
    free: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trt = replace(open_tensorrt("tensorrt_rtx"), **({"name": "tensorrt", "version": "10.16.1"} | changes))
    monkeypatch.setattr(device_checks, "compute_capability", lambda: capability)
    monkeypatch.setattr(device_checks.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, free))
    with pytest.raises(NotPossibleHere, match=words):
        device_checks.check_device(bundle, Bundle(bundle, finished=False).manifest, trt)


@needs_tensorrt
def test_a_disk_without_links_is_named(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(device_checks.os, "link", refuse)  # as on a stick's exFAT
    with pytest.raises(NotPossibleHere, match="copy it to a disk of the device"):
        device_bundle.finish(bundle, "tensorrt_rtx", device_bundle.Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"] and Bundle(bundle, verify=True, finished=False)


def test_short_memory_is_said_beforehand(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle(bundle, finished=False).manifest
    largest = max(sum(file.bytes for file in part.files) for part in manifest.parts)
    for available, count in ((largest, 1), (4 * largest, 0)):
        monkeypatch.setattr(
            device_checks, "machine_memory", lambda root, free=available: MachineMemory(free, None, free)
        )
        assert len(list(device_checks.warnings(manifest, tmp_path))) == count
