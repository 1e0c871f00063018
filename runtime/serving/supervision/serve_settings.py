"""The server's options, each defined once; from the command line, then the environment, then a TOML file, then the defaults.

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
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from echovlm_edge.runtime.contracts.command import add_version
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.serving.transport.server import DEFAULT_ADDRESS

ENVIRONMENT = "ECHOVLM_"
LOAD, WHO, EYES, MEASURING = "load", "access", "observability", "for measuring only"


def _option(default: Any, said: str, metavar: str | None = None, group: str = "", **limits: float) -> Any:
    bounds: dict[str, Any] = limits
    return Field(default, description=said, json_schema_extra={"metavar": metavar, "group": group}, **bounds)


class ServeSettings(BaseModel):
    """The options of `echovlm-serve`. A field `max_studies` is the option --max-studies and the variable ECHOVLM_MAX_STUDIES."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path = _option(..., "output folder of echovlm-build, or a link to one", "FOLDER")
    listen: str = _option(DEFAULT_ADDRESS, "address to serve; port 0 takes a free one", "HOST:PORT")
    port_file: Path | None = _option(None, "write the port to this file when the server is ready", "F")
    threads: int | None = _option(
        None, "compute threads; by default one per processor within the affinity mask and CPU quota", "N", ge=1
    )
    max_sequence: int | None = _option(
        None, "context length in tokens, if less than the bundle's; saves memory", "N", ge=1
    )
    max_message_mb: int = _option(64, "maximum size of a request", "N", ge=1, le=2047)  # gRPC's limit is an int32
    grace: float = _option(
        10.0, "time that running calls have to finish when the server stops", "SECONDS", ge=0, le=3600
    )
    verify: bool = _option(False, "check every file's hash before loading")

    slots: int | None = _option(
        *(None, "reports decoded at the same time (default 8, on a GPU at most the bundle's --max-batch)", "N", LOAD),
        ge=1,
        le=256,
    )
    turn_milliseconds: float | None = _option(
        *(
            None,
            "longest time between two tokens of a report while another's prompt is read (default: measured, see operations.md)",
        ),
        *("MS", LOAD),
        gt=0,
    )
    queue: int = _option(32, "calls that may wait for a slot", "N", LOAD, ge=0, le=4096)
    request_mb: int = _option(512, "memory for the requests of admitted calls", "N", LOAD, ge=1)
    prefix_mb: int = _option(1024, "memory for cached prompts, on a GPU the GPU's", "N", LOAD, ge=0)
    prefix_host_mb: int = _option(
        1024, "host memory for cached prompts that a GPU's own memory has no room for", "N", LOAD, ge=0
    )
    image_mb: int = _option(256, "memory for cached images", "N", LOAD, ge=0)
    parked_mb: int = _option(1024, "memory for the keys and values of preempted batch reports", "N", LOAD, ge=0)
    max_studies: int = _option(64, "maximum number of open studies", "N", LOAD, ge=0)
    study_mb: int = _option(1024, "memory for the pictures of open studies", "N", LOAD, ge=0)
    study_minutes: float = _option(30.0, "a study expires when unused for this long", "M", LOAD, gt=0)
    upload_mb: int = _option(1024, "memory for uploaded files; 0 accepts none", "N", LOAD, ge=0)
    upload_minutes: float = _option(5.0, "an uploaded file expires when unused for this long", "M", LOAD, gt=0)
    hang_seconds: float = _option(300.0, "an engine whose step takes longer is replaced", "S", LOAD, gt=0)
    decode_processes: int = _option(2, "processes that decode image files", "N", LOAD, ge=1, le=64)
    decode_mb: int = _option(3072, "memory limit of each decoding process", "N", LOAD, ge=512)
    decode_seconds: float = _option(20.0, "time limit to decode one file", "S", LOAD, gt=0)
    decode_user: int = _option(65534, "user id of the decoding processes if root starts the server", "N", LOAD, ge=1)

    clients: Path | None = _option(None, "TOML file of clients by token or certificate, and their quotas", "F", WHO)
    tls_certificate: Path | None = _option(None, "PEM file of the server's certificate chain", "F", WHO)
    tls_key: Path | None = _option(None, "PEM file of the certificate's private key", "F", WHO)
    tls_client_ca: Path | None = _option(None, "PEM file of a CA; clients need a certificate that it signed", "F", WHO)
    insecure: int = _option(
        *(0, "given twice (2 in a file): allow other addresses than loopback without TLS or client authentication"),
        *(None, WHO),
        ge=0,
    )

    metrics: str | None = _option(None, "serve Prometheus metrics at this address", "HOST:PORT", EYES)
    traces: str | None = _option(None, "send OpenTelemetry traces to this collector (OTLP over gRPC)", "URL", EYES)
    log: Literal["plain", "json"] = _option("plain", "format of the log on stderr", None, EYES)

    debug_ignore_stop: bool = _option(
        False, "generate max_new_tokens tokens for every call; ignore the stop token", None, MEASURING
    )


def read_settings(arguments: list[str] | None = None) -> ServeSettings | None:
    """Read the options from a command line, the environment and a file; returns None where --print-config printed them.

    Raises:
        InvalidInput: a value or a key is not valid; the sentence names where it was set.
        NotPossibleHere: the file cannot be read.
    """
    typed = vars(_parser().parse_args(arguments))
    path, printed = typed.pop("config"), typed.pop("print_config")
    settings = settings_of(path, typed)
    if printed:
        print(as_toml(settings), end="")
        return None
    return settings


def settings_of(path: Path | None, typed: Mapping[str, Any]) -> ServeSettings:
    """Combine typed options, the environment and the file at `path`; the former overrides the latter.

    Raises:
        InvalidInput: a value or a key is not valid; the sentence names where it was set.
        NotPossibleHere: the file cannot be read.
    """
    variables = {
        name: os.environ[_variable(name)] for name in ServeSettings.model_fields if _variable(name) in os.environ
    }
    return _checked({**_written(path), **variables, **typed}, path, variables, typed)


def add_option(parser: argparse._ActionsContainer, name: str) -> None:
    """Add one of the server's options to a parser; the parsed namespace lacks it where it is not typed."""
    field = ServeSettings.model_fields[name]
    shape: dict[str, Any] = {"metavar": _extra(field)["metavar"]}
    if choices := _choices(field):
        shape = {"choices": choices}
    elif field.annotation is bool:
        shape = {"action": "store_true"}
    elif name == "insecure":
        shape = {"action": "count"}
    parser.add_argument(_flag(name), help=_explained(field), default=argparse.SUPPRESS, **shape)


def as_toml(settings: ServeSettings) -> str:
    """Write the settings as a TOML file in which every option is explained."""
    return "\n".join(_toml_lines(settings)) + "\n"


def as_environment(settings: ServeSettings) -> dict[str, str]:
    """Write the settings as environment variables, from which `read_settings([])` reads the same settings."""
    said = {name: getattr(settings, name) for name in ServeSettings.model_fields}
    return {_variable(name): str(value) for name, value in said.items() if value is not None}


def with_absolute_paths(settings: ServeSettings) -> ServeSettings:
    """Make the settings' paths absolute, for processes that run in other folders."""
    said = {name: getattr(settings, name) for name in ServeSettings.model_fields}
    paths = {name: value.absolute() for name, value in said.items() if isinstance(value, Path)}
    return settings.model_copy(update=paths)


def _toml_lines(settings: ServeSettings) -> Iterator[str]:
    yield "# echovlm-serve --config FILE. The command line and the environment (ECHOVLM_SLOTS=4) override it."
    group = None
    for name, field in ServeSettings.model_fields.items():
        value, extra = getattr(settings, name), _extra(field)
        if extra["group"] != group:
            group = extra["group"]
            yield f"\n# {group[:1].upper()}{group[1:]}" if group else ""
        yield ""
        yield f"# {_explained(field)}"
        shown = str(value) if isinstance(value, Path) else value
        yield f"#{name} =" if value is None else f"{name} = {_toml(shown)}"


def _toml(value: str | float) -> str:
    return json.dumps(value, ensure_ascii=False).replace(
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
    values: Mapping[str, Any], path: Path | None, variables: Mapping[str, str], typed: Mapping[str, Any]
) -> ServeSettings:
    try:
        return ServeSettings(**values)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        name = str(first["loc"][0])
    field = ServeSettings.model_fields.get(name)
    if field is None:
        raise InvalidInput(f"{path} has an unknown option, {name}: echovlm-serve --print-config lists all options.")
    if name not in values:
        raise InvalidInput(
            f"{_flag(name)} is missing: give it on the command line, as {_variable(name)}, or in the file of --config."
        )
    where = _flag(name) if name in typed else _variable(name) if name in variables else f"{name} in {path}"
    raise InvalidInput(f"{where} must be {_expected(field)}, got {values[name]}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echovlm-serve",
        description="Serve a bundle over gRPC. Every option can also be set in the environment (ECHOVLM_SLOTS=4) and in a TOML file.",
        argument_default=argparse.SUPPRESS,
    )
    add_version(parser)
    parser.add_argument("--config", type=Path, default=None, metavar="F", help="TOML file of options")
    parser.add_argument(
        "--print-config",
        action="store_true",
        default=False,
        help="print the effective options as a TOML file, and exit",
    )
    groups: dict[str, Any] = {"": parser}
    for name, field in ServeSettings.model_fields.items():
        extra = _extra(field)
        group = groups.get(extra["group"]) or groups.setdefault(
            extra["group"], parser.add_argument_group(extra["group"])
        )
        add_option(group, name)
    return parser


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def _explained(field: FieldInfo) -> str:
    if field.is_required() or field.default in (None, False, 0):
        return field.description or ""
    default = f"{field.default:g}" if isinstance(field.default, float) else field.default
    return f"{field.description} (default {default})"


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
    return " or ".join(_choices(field)) or ("true or false" if field.annotation is bool else "text")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"{ENVIRONMENT}{name.upper()}"
