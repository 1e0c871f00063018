"""What to install, in a sentence that works: the package is in no index."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import PathDistribution, entry_points, version
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts import extras
from echovlm_edge.runtime.contracts.extras import install_hint, reinstall_hint

ROOT = Path(__file__).parents[2]
METADATA = """Metadata-Version: 2.1
Name: echovlm-edge
Version: 0.1.0
Provides-Extra: clinical
Requires-Dist: numpy>=2.0
Requires-Dist: fhir.resources>=8.0; extra == "clinical"
Requires-Dist: highdicom>=0.27; extra == 'clinical'
Requires-Dist: ray[serve]>=2.60; extra == "ray"
Requires-Dist: echovlm-edge[base,clinical]; extra == "all"
Requires-Dist: rich>=13; extra == "base"
"""


def installed_from(folder: Path, monkeypatch: pytest.MonkeyPatch, origin: object) -> None:
    """Pretend that pip installed the package from there."""
    (folder / "METADATA").write_text(METADATA)
    if origin is not None:
        (folder / "direct_url.json").write_text(origin if isinstance(origin, str) else json.dumps(origin))
    monkeypatch.setattr(extras, "distribution", lambda _: PathDistribution(folder))


@pytest.mark.parametrize("editable", [True, False])
def test_from_a_clone(editable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "my clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    installed_from(tmp_path, monkeypatch, {"url": clone.as_uri(), "dir_info": {"editable": True} if editable else {}})
    flag = ["-e"] if editable else []
    assert shlex.split(install_hint("clinical")) == ["pip", "install", *flag, f"{clone}[clinical]"]
    assert shlex.split(reinstall_hint())[-1] == str(clone)
    with_kernels = shlex.split(reinstall_hint(gpu_kernels=True))
    assert with_kernels[-1] == str(clone) and "cmake.define.ECHOVLM_CUDA_KERNELS=ON" in with_kernels


def test_from_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "echovlm_edge-0.1.0-py3-none-linux_x86_64.whl"
    wheel.touch()
    installed_from(tmp_path, monkeypatch, {"url": wheel.as_uri(), "archive_info": {}})
    assert shlex.split(install_hint("clinical")) == ["pip", "install", f"{wheel}[clinical]"]


@pytest.mark.parametrize(
    "origin", [None, "{", {"url": "file:///gone/away.whl"}, {"url": "https://somewhere/a.whl"}, {}], ids=str
)
def test_from_somewhere_that_is_gone(origin: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed_from(tmp_path, monkeypatch, origin)
    assert shlex.split(install_hint("clinical")) == ["pip", "install", "fhir.resources>=8.0", "highdicom>=0.27"]
    assert shlex.split(install_hint("ray")) == ["pip", "install", "ray[serve]>=2.60"]
    assert shlex.split(install_hint("ray,clinical"))[-1] == "highdicom>=0.27"
    assert shlex.split(install_hint("all")) == ["pip", "install", "rich>=13", "fhir.resources>=8.0", "highdicom>=0.27"]
    assert "source folder" in reinstall_hint()


def test_no_sentence_names_a_package_that_no_index_has() -> None:
    for folder in ("benchmarks", "demo", "deploy", "export", "plugins", "runtime"):
        for file in (ROOT / folder).rglob("*.py"):
            said = re.search(r"""pip install (-\S+ )*['"]?echovlm-edge""", file.read_text(encoding="utf-8"))
            assert not said, file


def test_every_extra_that_is_named_exists() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in ("benchmarks", "deploy", "export", "runtime"):
        for file in (ROOT / folder).rglob("*.py"):
            for extra in re.findall(r"""install_hint\(['"]([\w,-]+)['"]\)""", file.read_text(encoding="utf-8")):
                for one in extra.split(","):
                    assert f"\n{one} = [" in declared, f"{file} names the extra {extra}"


@pytest.mark.parametrize("name", ["build", "serve", "report", "profile", "doctor"])
def test_every_command_says_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = entry_points(group="console_scripts", name=f"echovlm-{name}")
    with pytest.raises(SystemExit) as ended:
        script.load()(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"echovlm-{name} {version('echovlm-edge')}\n"
