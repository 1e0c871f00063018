"""The container files: they install as docs/release.md says, from folders that their first lines make, and start what exists."""

from __future__ import annotations

import json
import re
import shlex
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from deploy import wheelhouse
from deploy.rehearsal import journey
from deploy.release import PROCESSORS

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = ("Containerfile", "Containerfile.dicom")


def instructions(file: str) -> list[tuple[str, str]]:
    """The words after each keyword, in order; lines that end in a backslash are joined."""
    text = (DEPLOY / file).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def head(file: str) -> str:
    return "\n".join(re.findall(r"^#(.*)$", (DEPLOY / file).read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("file", FILES)
def test_an_image_installs_as_the_page_and_the_rehearsal_do(file: str) -> None:
    runs = [words for keyword, words in instructions(file) if keyword == "RUN"]
    assert runs[:3] == [journey.CHECK, journey.VENV, journey.INSTALL]
    for words in runs[3:]:
        assert set(re.findall(r"(?:^|&& )(\S+)", words)) <= {"useradd", "install", "dpkg"}, "needs no network"


@pytest.mark.parametrize("file", FILES)
def test_what_an_image_copies_is_made_by_its_first_lines(file: str) -> None:
    made = {"dist", *re.findall(r"--output (\S+)", head(file)), *re.findall(r"mkdir -p (\S+)", head(file))}
    stages = {words.partition(" AS ")[2] for keyword, words in instructions(file) if keyword == "FROM"} - {""}
    copied = [shlex.split(words) for keyword, words in instructions(file) if keyword == "COPY"]
    assert {source for source, _ in [words for words in copied if len(words) == 2]} == made
    assert [words for words in copied if len(words) == 3] == [
        [f"--from={stage}", *2 * ["/opt/echovlm"]] for stage in stages
    ]


@pytest.mark.parametrize("file", FILES)
def test_the_first_lines_name_a_wheel_extras_and_an_image_that_exist(file: str) -> None:
    (line,) = re.findall(r"python -m deploy\.wheelhouse (.*)", head(file))
    wheel, *rest = shlex.split(line)
    name = re.fullmatch(r"dist/echovlm_edge-([\d.]+)-py3-none-manylinux_2_(\d+)_(\w+)\.whl", wheel)
    assert name and name[1] == version("echovlm-edge") and name[3] in PROCESSORS
    assert int(name[2]) <= wheelhouse.NEWEST_GLIBC
    extras = rest[rest.index("--extra") + 1 : rest.index("--output")]
    assert set(extras) <= set(journey.OFFLINE)
    images = {words.partition(" ")[0] for keyword, words in instructions(file) if keyword == "FROM"}
    assert images == {re.findall(r"podman pull (\S+)", head(file))[0]}
    (python,) = {re.findall(r"/python:3\.(\d+)-", image)[0] for image in images}
    assert f"3.{python}" == "3.11", "the wheelhouse's default"
    assert f"-f deploy/{file} " in head(file)


@pytest.mark.parametrize("file", FILES)
def test_an_image_starts_an_installed_command_with_options_that_it_takes(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (words,) = (json.loads(words) for keyword, words in instructions(file) if keyword == "ENTRYPOINT")
    folder, _, name = words[0].rpartition("/")
    assert folder == journey.BIN
    (script,) = entry_points(group="console_scripts", name=name)
    with pytest.raises(SystemExit) as ended:
        script.load()([*words[1:], "--help"])
    taken = capsys.readouterr().out
    assert ended.value.code == 0
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[\w-]+", taken))
