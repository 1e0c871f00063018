"""Every command's options that take several values add them up, however often they are given, and leave arguments alone."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from echovlm_edge.runtime.doctor import command as doctor
from echovlm_edge.runtime.profiling import measure_command as profile

ROOT = Path(__file__).parents[2]
GREEDY = ("+", "*", "?")  # an option takes as many values as follow it
FOLDERS = ("benchmarks", "demo", "deploy", "export", "plugins", "runtime")
SOURCES = {
    path: path.read_text(encoding="utf-8").count("ArgumentParser(")
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}


over_commands = pytest.mark.parametrize(
    "path", [path for path, count in SOURCES.items() if count], ids=lambda path: str(path.relative_to(ROOT))
)


class Found(Exception):
    """Carries the parser out of a command that was about to parse."""


def refuse(parser: argparse.ArgumentParser, *_: object) -> None:
    raise Found(parser)


def parsers(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[argparse.ArgumentParser]:
    """Those of a module: what its functions named …_parser make, or else what its `main` parses with."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    installed = path.relative_to(ROOT).parts[0] in ("export", "plugins", "runtime")
    try:
        module = importlib.import_module(f"echovlm_edge.{name}" if installed else name)
    except (ModuleNotFoundError, SystemExit) as missing:
        pytest.skip(str(missing))
    made = [function() for name, function in inspect.getmembers(module, inspect.isfunction) if name.endswith("_parser")]
    if not made:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", refuse)
        with pytest.raises(Found) as found:
            module.main()
        made.append(found.value.args[0])
    return made


def with_subcommands(found: list[argparse.ArgumentParser]) -> Iterator[argparse.ArgumentParser]:
    """The parsers, and those of their subcommands."""
    for parser in found:
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from with_subcommands(list(dict.fromkeys(action.choices.values())))


@over_commands
def test_no_option_takes_an_argument_that_follows_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for parser in with_subcommands(parsers(path, monkeypatch)):
        arguments = [action.dest for action in parser._actions if not action.option_strings and action.nargs != 0]
        greedy = [
            action.option_strings for action in parser._actions if action.option_strings and action.nargs in GREEDY
        ]
        assert not arguments or not greedy, f"{parser.prog}: {greedy} before {arguments} takes them: use REPEATED"


@over_commands
def test_several_values_add_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = parsers(path, monkeypatch)
    assert len(found) == SOURCES[path], "a parser that this test does not see"
    for parser in with_subcommands(found):
        for action in parser._actions:
            several = action.nargs in ("+", "*") or (isinstance(action.nargs, int) and action.nargs > 1)
            if several and action.option_strings:
                (option, *_) = action.option_strings
                assert isinstance(action, argparse._ExtendAction), f"{option} given twice keeps only the last values"
                # What is given is added to the default, so that a default other than nothing could not be taken away.
                assert not action.default, f"{option} has a default, {action.default}"


def test_every_bound_is_checked() -> None:
    parser = profile.measure_parser()
    options = parser.parse_args(["--assert", "x<1", "--runs", "3", "--assert", "y<2", "z<3"])
    assert options.bounds == ["x<1", "y<2", "z<3"]
    assert parser.parse_args([]).bounds == [], "one command line is left in the next"


def test_every_bundle_is_examined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--bundle", str(tmp_path / "one"), "--bundle", str(tmp_path / "two"), "--json"]) == 1
    out = capsys.readouterr().out
    assert str(tmp_path / "one") in out and str(tmp_path / "two") in out
