"""A command's options, each defined once as a field of a model; from the command line, the environment, a TOML file, the defaults.

pydantic validates the values, and `settings_of` merges the sources. pydantic-settings does not replace that: it does not tell which
source a wrong value came from, which the sentence names, and it passes over a file that is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere


class CommandSettings(BaseModel):
    """The options of a command. A field `max_studies` is the option --max-studies and the variable PREFIX_MAX_STUDIES.

    Attributes:
        COMMAND: the command's name.
        PREFIX: of the environment's variables.
        EXAMPLE: an option in the environment, for the head of a TOML file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    COMMAND: ClassVar[str]
    PREFIX: ClassVar[str]
    EXAMPLE: ClassVar[str]


Settings = TypeVar("Settings", bound=CommandSettings)


def option(default: Any, said: str, metavar: str | None = None, group: str = "", **limits: float) -> Any:
    """Define an option.

    Args:
        default: its value where it is not set; `...` for one that must be set.
        said: what --help says.
        metavar: stands for the value in --help.
        group: the heading that it is listed under.
        limits: pydantic's bounds of a number: ge, gt, le.
    """
    bounds: dict[str, Any] = limits
    return Field(default, description=said, json_schema_extra={"metavar": metavar, "group": group}, **bounds)


def settings_from(kind: type[Settings], parsed: argparse.Namespace) -> Settings | None:
    """Combine options parsed as `add_settings` declared them with the environment and a file; None where --print-config printed them.

    Raises:
        InvalidInput: a value or a key is not valid; the sentence names where it was set.
        NotPossibleHere: the file cannot be read.
    """
    typed = {name: value for name, value in vars(parsed).items() if name in kind.model_fields and value is not None}
    settings = settings_of(kind, parsed.config, typed)
    if parsed.print_config:
        print(as_toml(settings), end="")
        return None
    return settings


def settings_of(kind: type[Settings], path: Path | None, typed: Mapping[str, Any]) -> Settings:
    """Combine typed options, the environment and the file at `path`; the former overrides the latter.

    Raises:
        InvalidInput: a value or a key is not valid; the sentence names where it was set.
        NotPossibleHere: the file cannot be read.
    """
    set_there = ((name, os.environ.get(_variable(kind, name))) for name in kind.model_fields)
    variables = {
        name: value.split() if _is_list(kind.model_fields[name]) else value
        for name, value in set_there
        if value is not None
    }
    return _checked(kind, {**_written(path), **variables, **typed}, path, variables, typed)


def add_settings(parser: argparse.ArgumentParser, kind: type[CommandSettings]) -> None:
    """Add all options of a command to a parser, and --config and --print-config."""
    parser.add_argument("--config", type=Path, default=None, metavar="F", help="TOML file of options")
    parser.add_argument(
        "--print-config",
        action="store_true",
        default=False,
        help="print the effective options as a TOML file, and exit",
    )
    groups: dict[str, Any] = {"": parser}
    for name, field in kind.model_fields.items():
        extra = _extra(field)
        group = groups.get(extra["group"]) or groups.setdefault(
            extra["group"], parser.add_argument_group(extra["group"])
        )
        add_option(group, kind, name)


def add_option(parser: argparse._ActionsContainer, kind: type[CommandSettings], name: str) -> None:
    """Add one option to a parser; the parsed namespace lacks it where it is not typed."""
    field = kind.model_fields[name]
    shape: dict[str, Any] = {"metavar": _extra(field)["metavar"]}
    if _is_list(field):
        shape |= {**SEVERAL, "default": None}  # None: not typed
    elif choices := _choices(field):
        shape = {"choices": choices}
    elif field.annotation is bool:
        shape = {"action": "store_true"}
    elif name == "insecure":
        shape = {"action": "count"}
    parser.add_argument(_flag(name), help=_explained(field), **{"default": argparse.SUPPRESS, **shape})


def as_toml(settings: CommandSettings) -> str:
    """Write the settings as a TOML file in which every option is explained."""
    return "\n".join(_toml_lines(settings)) + "\n"


def as_environment(settings: CommandSettings) -> dict[str, str]:
    """Write the settings as environment variables, from which `settings_of` reads the same settings."""
    kind = type(settings)
    said = {name: getattr(settings, name) for name in kind.model_fields}
    return {
        _variable(kind, name): " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in said.items()
        if value is not None
    }


def with_absolute_paths(settings: Settings) -> Settings:
    """Make the settings' paths absolute, for processes that run in other folders."""
    said = {name: getattr(settings, name) for name in type(settings).model_fields}
    return settings.model_copy(update={name: _absolute(value) for name, value in said.items()})


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_absolute, value))
    return value.absolute() if isinstance(value, Path) else value


def _toml_lines(settings: CommandSettings) -> Iterator[str]:
    kind = type(settings)
    yield f"# {kind.COMMAND} --config FILE. The command line and the environment ({kind.EXAMPLE}) override it."
    group = None
    for name, field in kind.model_fields.items():
        value, extra = getattr(settings, name), _extra(field)
        if extra["group"] != group:
            group = extra["group"]
            yield f"\n# {group[:1].upper()}{group[1:]}" if group else ""
        yield ""
        yield f"# {_explained(field)}"
        yield f"#{name} =" if value is None else f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str).replace(
        "\x7f", "\\u007f"
    )  # the one character that JSON allows and TOML does not


def _written(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotPossibleHere(f"The configuration file {path} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The configuration file {path} is not TOML ({error}).") from None


def _checked(
    kind: type[Settings],
    values: Mapping[str, Any],
    path: Path | None,
    variables: Mapping[str, Any],
    typed: Mapping[str, Any],
) -> Settings:
    try:
        return kind(**values)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        name = str(first["loc"][0])
    field = kind.model_fields.get(name)
    if field is None:
        raise InvalidInput(f"{path} has an unknown option, {name}: {kind.COMMAND} --print-config lists all options.")
    if name not in values:
        raise InvalidInput(
            f"{_flag(name)} is missing: give it on the command line, as {_variable(kind, name)}, or in the file of --config."
        )
    where = _flag(name) if name in typed else _variable(kind, name) if name in variables else f"{name} in {path}"
    raise InvalidInput(f"{where} must be {_expected(field)}, got {values[name]}.")


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def _explained(field: FieldInfo) -> str:
    if field.is_required() or field.default in (None, False, 0, ()):
        return field.description or ""
    default = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f"{field.description} (default {default})"


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return tuple(choice for choice in get_args(field.annotation) if isinstance(choice, str))


def _expected(field: FieldInfo) -> str:
    """Describe the values that a field allows, for example `between 1 and 256`."""
    limits = {
        kind: getattr(item, kind) for item in field.metadata for kind in ("ge", "gt", "le") if hasattr(item, kind)
    }
    if {"ge", "le"} <= limits.keys():
        return f"between {limits['ge']} and {limits['le']}"
    if "ge" in limits:
        return f"at least {limits['ge']}"
    if "gt" in limits:
        return f"above {limits['gt']}"
    if _is_list(field):
        return "a list of texts"
    return " or ".join(_choices(field)) or ("true or false" if field.annotation is bool else "text")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(kind: type[CommandSettings], name: str) -> str:
    return f"{kind.PREFIX}{name.upper()}"
