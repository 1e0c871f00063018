"""The pages lead somewhere: links, paths, make targets, commands' options, extras and imports that they name exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "demo", "deploy", "docs", "examples", "export", "plugins", "proto", "runtime", "tests")
PAGES = sorted(
    page
    for pattern in ("*.md", ".github/**/*.md", *(f"{folder}/**/*.md" for folder in FOLDERS))
    for page in ROOT.glob(pattern)
)
README_LINES = 130
SOURCES = (".py", ".cpp", ".hpp", ".h", ".sh", ".proto", ".cmake", ".md")
ELSEWHERE = {"build_on_device.sh", "cuda.h"}  # written by a build; CUDA's own
OF_OTHERS = {"--memory", "--cpuset-cpus", "--toolchain"}  # podman's and docker's; cmake's
COMMAND = re.compile(
    r"(?:(?<![\w./-])|(?<=/bin/))(echovlm-(?:build|serve|report|dicom|profile|evaluate|doctor|accept|bundle))((?: (?!echovlm-)[^|;&#`]*)?)"
)
WHOLE_COMMAND = re.compile(
    r"^(?:sudo |\$ )?(?:[\w./-]*/bin/)?(echovlm-(?:build|serve|report|dicom|profile|evaluate|doctor|accept|bundle))(?= |$)([^|;&#>]*)"
)
ARCHAIC = re.compile(
    r"\b(?:anew|mend(?:s|ed|ing)?|gone on with|goes on|in company|g(?:ive|ives|iving|ave) way|seen before|let (?:in|go))\b",
    re.IGNORECASE,
)
SUBCOMMANDS = {
    "echovlm-bundle": ("install", "rollback", "sign"),
    "echovlm-dicom": ("status", "complete", "resend", "send"),
    "echovlm-evaluate": ("run", "compare"),
    "echovlm-profile": ("compare", "page"),
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")

over_pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(text: str) -> Iterator[str]:
    """What is fenced, or indented by four spaces: one command a line."""
    text = text.replace("\\\n", " ")
    for fenced in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from fenced.splitlines()
    for line in prose(text).splitlines():
        if line.startswith("    ") and line.strip():
            yield line.strip()


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```\n", "", text, flags=re.MULTILINE | re.DOTALL)


def spans(text: str) -> list[str]:
    """What stands between backticks in a line of prose, or over two."""
    lines = "\n".join(line for line in prose(text).splitlines() if not line.startswith("    "))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", lines)]


def code(text: str) -> list[str]:
    """All that a reader may copy."""
    return [*blocks(text), *spans(text)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Where GitHub lets a link point in a page."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return frozenset(found)


@cache
def files() -> frozenset[str]:
    """The repository's files, by their path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = listed.stdout.splitlines() or [
        str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()
    ]
    return frozenset(names)


@cache
def usage(command: str) -> str:
    """How a command, or one of its subcommands, says it is called."""
    name, *words = command.split()
    (script,) = entry_points(group="console_scripts", name=name)
    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as left:
        script.load()([*words, "--help"])
    assert left.value.code == 0
    return out.getvalue().split("\n\n")[0]


@cache
def all_options() -> frozenset[str]:
    """Every option of this project's commands, benchmarks and tests."""
    declared = {
        name
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r'"(--[a-z][a-z0-9-]*)"', path.read_text(encoding="utf-8"))
    }
    commands = [
        f"echovlm-{name}"
        for name in ("build", "serve", "report", "dicom", "profile", "evaluate", "doctor", "accept", "bundle")
    ]
    commands += [f"{command} {word}" for command, words in SUBCOMMANDS.items() for word in words]
    cpp = OPTION.findall((ROOT / "examples/cpp/cart_options.cpp").read_text(encoding="utf-8"))
    return frozenset({*declared, *cpp, *(name for each in commands for name in OPTION.findall(usage(each)))})


def targets() -> set[str]:
    """What make can make."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def exists(path: str, page: Path) -> bool:
    """Whether a path, from the root or from the page's folder, or a bare name is a file or folder of the repository."""
    path = path.rstrip("/")
    if "/" not in path and any(name.rpartition("/")[2] == path for name in files()):
        return True
    return (ROOT / path).exists() or (page.parent / path).exists()


@over_pages
def test_links_lead_somewhere(page: Path) -> None:
    text = prose(page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists() and to.is_relative_to(ROOT), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(to), f"{page.name} links to {link}, and that page has only {sorted(anchors(to))}"


@over_pages
def test_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for span in spans(text):
        if span in ELSEWHERE or not re.fullmatch(r"\.?[\w.-]+(/[\w.-]+)*/?", span):
            continue
        first = span.partition("/")[0]
        if first == "build":
            continue
        if span.endswith(SOURCES) or ("/" in span and first in FOLDERS):
            assert exists(span, page), f"{page.name} names {span}"
    inside = re.compile(rf"(?<![\w./-])((?:{'|'.join(FOLDERS)})/[\w./-]*\w/?)(?![\w<…*])")
    for line in code(text):
        for path in inside.findall(line):
            assert exists(path, page), f"{page.name} names {path}"


def test_the_folders_of_the_architecture_are_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = {name for line in blocks(text) for name in re.findall(r"(?<![\w/])\w+\.py\b|(?<![\w./])\w+/(?= )", line)}
    places = {
        part
        for name in files()
        for part in (name.rpartition("/")[2], *(f"{folder}/" for folder in name.split("/")[:-1]))
    }
    assert named and named <= places, named - places


@over_pages
def test_make_targets_exist(page: Path) -> None:
    named = {
        name
        for line in code(page.read_text(encoding="utf-8"))
        for name in re.findall(r"^(?:sudo )?make ([a-z-]+)\b", line)
    }
    assert named <= targets(), f"{page.name} names make {sorted(named - targets())}"


@over_pages
def test_toolchain_files_are_named_from_where_cmake_looks(page: Path) -> None:
    for source, toolchain in re.findall(r"cmake -S (\S+).* --toolchain (\S+)", page.read_text(encoding="utf-8")):
        assert (ROOT / source / toolchain).is_file(), f"{page.name}: {toolchain} is not in {source}"


@over_pages
def test_modules_that_are_run_exist(page: Path) -> None:
    for line in code(page.read_text(encoding="utf-8")):
        for module, rest in re.findall(r"python3? -m ([\w.]+)([^|;&#]*)", line):
            if module.partition(".")[0] not in (*FOLDERS, "echovlm_edge"):
                continue
            path = ROOT / module.replace("echovlm_edge.", "").replace(".", "/")
            found = next((each for each in (path.with_suffix(".py"), path / "__main__.py") if each.is_file()), None)
            assert found, f"{page.name} runs {module}"
            said = found.read_text(encoding="utf-8")
            assert all(f'"{option}"' in said for option in OPTION.findall(rest)), f"{page.name}: {module}{rest}"


@over_pages
def test_options_exist(page: Path) -> None:
    for line in code(page.read_text(encoding="utf-8")):
        for command, rest in COMMAND.findall(line):
            word = rest.split()[0] if rest.split() else ""
            which = f"{command} {word}" if word in SUBCOMMANDS.get(command, ()) else command
            for option in OPTION.findall(rest):
                assert option in (*OPTION.findall(usage(which)), "--help", "--version"), (
                    f"{page.name}: {which} {option}"
                )
        if line.startswith("--"):
            assert line.split()[0] in all_options() | OF_OTHERS, f"{page.name} names {line}"


class Parsed(Exception):
    """Ends a command when its parser has read its options."""


def mains(line: str) -> Iterator[tuple[Callable[[list[str]], object], str]]:
    """The commands that a line to copy begins, and their arguments."""
    for name, rest in WHOLE_COMMAND.findall(line):
        (script,) = entry_points(group="console_scripts", name=name)
        yield script.load(), rest
    for module, rest in re.findall(r"python3? -m (deploy\.\w+)([^|;&#>]*)", line):
        yield importlib.import_module(module).main, rest
    for rest in re.findall(r"build_on_device\.sh([^|;&#>]*)", line):
        yield importlib.import_module("echovlm_edge.export.device_bundle").main, f"BUNDLE {rest}"


@over_pages
def test_commands_are_parsed(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = ArgumentParser.parse_args

    def parsed(parser: ArgumentParser, *arguments: Any) -> None:
        parse(parser, *arguments)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parsed)
    for line in blocks(page.read_text(encoding="utf-8")):
        for main, rest in mains(line.partition("    #")[0]):
            if not {"…", "..."} & set(rest.split()):
                with redirect_stderr(StringIO()) as said:
                    try:
                        main(shlex.split(rest))
                    except Parsed:
                        continue
                    except SystemExit:
                        pass
                pytest.fail(f"{page.name}: {line}\n{said.getvalue()}")


@over_pages
def test_extras_exist(page: Path) -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in code(page.read_text(encoding="utf-8")):
        for extras in re.findall(r"\.\[([\w,-]+)\]", line):
            assert set(extras.split(",")) <= set(package["optional-dependencies"]), f"{page.name} installs {extras}"
        assert "echovlm-edge[" not in line, "the package is in no index: pip install '.[…]' in a clone"


@over_pages
def test_python_that_is_shown_imports(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("echovlm"):
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{page.name} imports {name.name} from {node.module}"


@over_pages
def test_pages_use_plain_words(page: Path) -> None:
    text = re.sub(r"<!-- memory -->.*?<!-- /memory -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not (found := ARCHAIC.findall(" ".join(text.split()))), f"{page.name}: {found}"


def test_the_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set[Path](), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        for link in re.findall(r"\]\(([^)\s#]+)", prose(page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:", link):
                todo.append((page.parent / link).resolve())
    lost = {str(page.relative_to(ROOT)) for page in PAGES if page.parent == ROOT / "docs"} - {
        str(page.relative_to(ROOT)) for page in reached
    }
    assert not lost, f"no page leads to {sorted(lost)}"
