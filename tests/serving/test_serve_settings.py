"""The server's options: one meaning from the command line, the environment and a file, and a sentence where a value cannot be."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings, as_toml, read_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "serve.toml"


def read(*arguments: object) -> ServeSettings:
    settings = read_settings([str(argument) for argument in arguments])
    assert settings
    return settings


def test_the_command_line_goes_before_the_environment_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('bundle = "/b"\nslots = 1\nqueue = 1\nstudy_mb = 1\n')
    monkeypatch.setenv("ECHOVLM_SLOTS", "2")
    monkeypatch.setenv("ECHOVLM_QUEUE", "2")
    settings = read("--config", file, "--slots", 3)
    assert (settings.slots, settings.queue, settings.study_mb, settings.image_mb) == (3, 2, 1, 256)
    assert settings.bundle == Path("/b")


def test_flags_and_what_is_said_twice(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read("--bundle", "/b", "--verify", "--insecure", "--insecure")
    assert settings.verify and settings.insecure == 2
    monkeypatch.setenv("ECHOVLM_VERIFY", "true")
    file.write_text("insecure = 2\n")
    settings = read("--bundle", "/b", "--config", file)
    assert settings.verify and settings.insecure == 2


@pytest.mark.parametrize(
    ("arguments", "variable", "text", "sentence"),
    [
        (["--slots", "300"], None, "", "--slots must be between 1 and 256, got 300."),
        (["--slots", "many"], None, "", "--slots must be between 1 and 256, got many."),
        ([], ("ECHOVLM_GRACE", "-1"), "", "ECHOVLM_GRACE must be between 0 and 3600, got -1."),
        ([], None, "queue = 1.5", "queue in {file} must be between 0 and 4096, got 1.5."),
        ([], None, 'log = "loud"', "log in {file} must be plain or json, got loud."),
        ([], None, "listen = 7", "listen in {file} must be text, got 7."),
        ([], None, "verify = 3", "verify in {file} must be true or false, got 3."),
        ([], None, "study_minutes = 0", "study_minutes in {file} must be above 0, got 0."),
        ([], None, "slot = 1", "{file} has an unknown option, slot: echovlm-serve --print-config lists all options."),
        ([], None, "slots 1", "The configuration file {file} is not TOML"),
    ],
)
def test_what_cannot_be_is_one_sentence_that_says_where(
    arguments: list[str],
    variable: tuple[str, str] | None,
    text: str,
    sentence: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file.write_text(text)
    if variable:
        monkeypatch.setenv(*variable)
    with pytest.raises(InvalidInput) as refused:
        read("--bundle", "/b", "--config", file, *arguments)
    assert str(refused.value).startswith(sentence.format(file=file)) and "\n" not in str(refused.value)


def test_what_is_missing_is_named(file: Path) -> None:
    with pytest.raises(
        InvalidInput, match=r"--bundle is missing: give it on the command line, as ECHOVLM_BUNDLE, or in the file"
    ):
        read()
    with pytest.raises(NotPossibleHere, match=r"serve\.toml cannot be read \(No such file"):
        read("--config", file)


def test_what_is_in_force_can_be_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHOVLM_SLOTS", "4")
    assert read_settings(["--bundle", "/b", "--print-config"]) is None
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["slots"] == 4
    assert all(f"\n{name} =" in printed or f"\n#{name} =" in printed for name in ServeSettings.model_fields)


@given(
    slots=st.integers(1, 256),
    grace=st.floats(0, 3600),
    bundle=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
        lambda t: t.strip("/.")
    ),
    metrics=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
)
def test_a_printed_file_says_the_same(slots: int, grace: float, bundle: str, metrics: str | None) -> None:
    settings = ServeSettings(bundle=Path(bundle), slots=slots, grace=grace, metrics=metrics)
    assert ServeSettings(**tomllib.loads(as_toml(settings))) == settings
