"""The server's options, each defined once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from echovlm_edge.runtime.contracts import settings
from echovlm_edge.runtime.contracts.command import add_version
from echovlm_edge.runtime.contracts.settings import as_environment, as_toml, option, with_absolute_paths
from echovlm_edge.runtime.serving.transport.server import DEFAULT_ADDRESS

__all__ = [
    "ServeSettings",
    "add_option",
    "as_environment",
    "as_toml",
    "read_settings",
    "settings_of",
    "with_absolute_paths",
]

LOAD, WHO, EYES, MEASURING = "load", "access", "observability", "for measuring only"


class ServeSettings(settings.CommandSettings):
    """The options of `echovlm-serve`. A field `max_studies` is the option --max-studies and the variable ECHOVLM_MAX_STUDIES."""

    COMMAND = "echovlm-serve"
    PREFIX = "ECHOVLM_"
    EXAMPLE = "ECHOVLM_SLOTS=4"

    bundle: Path = option(..., "output folder of echovlm-build, a link to one, or a folder of echovlm-bundle", "FOLDER")
    listen: str = option(DEFAULT_ADDRESS, "address to serve; port 0 takes a free one", "HOST:PORT")
    http: str | None = option(None, "serve HTTP too, in the forms of OpenAI's API, at this address", "HOST:PORT")
    http_name: tuple[str, ...] = option(
        (),
        "names of this server in plain HTTP, besides localhost and its addresses",
        "NAME",
    )
    no_console: bool = option(False, "leave out the console, the page at / of --http")
    console_study: Path | None = option(
        None, "image files that the console offers to try, to all who may call", "FOLDER"
    )
    port_file: Path | None = option(None, "write the port to this file when the server is ready", "F")
    threads: int | None = option(
        None, "compute threads; by default one per processor within the affinity mask and CPU quota", "N", ge=1
    )
    max_sequence: int | None = option(
        None, "context length in tokens, if less than the bundle's; saves memory", "N", ge=1
    )
    image_tokens: int | None = option(
        None, "visual tokens of a frame at most, if fewer than the bundle's; larger frames are scaled down", "N", ge=1
    )
    max_message_mb: int = option(64, "maximum size of a request", "N", ge=1, le=2047)  # gRPC's limit is an int32
    grace: float = option(
        10.0, "time that running calls have to finish when the server stops", "SECONDS", ge=0, le=3600
    )
    verify: bool = option(False, "check every file's hash before loading")
    require_signature: tuple[Path, ...] = option(
        (), "serve only bundles that one of these keys of minisign has signed, and check every file's hash", "PUBKEY"
    )
    skip_golden: bool = option(False, "load a bundle without letting it write its golden tokens first")
    no_note: tuple[str, ...] = option(
        (),
        "notes about finished texts to leave out: repetition, ending, impression, script, side, organ, size, picture, answer",
        "NOTE",
    )

    slots: int | None = option(
        *(None, "reports decoded at the same time (default 8, on a GPU at most the bundle's --max-batch)", "N", LOAD),
        ge=1,
        le=256,
    )
    turn_milliseconds: float | None = option(
        *(
            None,
            "longest time between two tokens of a report while another's prompt is read (default: measured, see operations.md)",
        ),
        *("MS", LOAD),
        gt=0,
    )
    drafting: Literal["auto", "off"] = option(
        "auto",
        "guess tokens from phrases and check several in one step, where that pays; texts are the same",
        None,
        LOAD,
    )
    queue: int = option(32, "calls that may wait for a slot", "N", LOAD, ge=0, le=4096)
    request_mb: int = option(512, "memory for the requests of admitted calls", "N", LOAD, ge=1)
    prefix_mb: int = option(1024, "memory for cached prompts, on a GPU the GPU's", "N", LOAD, ge=0)
    prefix_host_mb: int = option(
        1024, "host memory for cached prompts that a GPU's own memory has no room for", "N", LOAD, ge=0
    )
    image_mb: int = option(256, "memory for cached images", "N", LOAD, ge=0)
    parked_mb: int = option(1024, "memory for the keys and values of preempted batch reports", "N", LOAD, ge=0)
    reply_mb: int = option(
        16, "memory for the phrases of each client's finished texts, from which tokens are guessed", "N", LOAD, ge=0
    )
    max_studies: int = option(64, "maximum number of open studies", "N", LOAD, ge=0)
    study_mb: int = option(1024, "memory for the pictures of open studies", "N", LOAD, ge=0)
    study_minutes: float = option(30.0, "a study expires when unused for this long", "M", LOAD, gt=0)
    upload_mb: int = option(1024, "memory for uploaded files; 0 accepts none", "N", LOAD, ge=0)
    upload_minutes: float = option(5.0, "an uploaded file expires when unused for this long", "M", LOAD, gt=0)
    hang_seconds: float = option(300.0, "an engine whose step takes longer is replaced", "S", LOAD, gt=0)
    decode_processes: int = option(2, "processes that decode image files", "N", LOAD, ge=1, le=64)
    decode_mb: int = option(3072, "memory limit of each decoding process", "N", LOAD, ge=512)
    decode_seconds: float = option(20.0, "time limit to decode one file", "S", LOAD, gt=0)
    decode_user: int = option(65534, "user id of the decoding processes if root starts the server", "N", LOAD, ge=1)

    clients: Path | None = option(None, "TOML file of clients by token or certificate, and their quotas", "F", WHO)
    tls_certificate: Path | None = option(None, "PEM file of the server's certificate chain", "F", WHO)
    tls_key: Path | None = option(None, "PEM file of the certificate's private key", "F", WHO)
    tls_client_ca: Path | None = option(None, "PEM file of a CA; clients need a certificate that it signed", "F", WHO)
    insecure: int = option(
        *(0, "given twice (2 in a file): allow other addresses than loopback without TLS or client authentication"),
        *(None, WHO),
        ge=0,
    )

    metrics: str | None = option(None, "serve Prometheus metrics at this address", "HOST:PORT", EYES)
    traces: str | None = option(None, "send OpenTelemetry traces to this collector (OTLP over gRPC)", "URL", EYES)
    log: Literal["plain", "json"] = option("plain", "format of the log on stderr", None, EYES)

    debug_ignore_stop: bool = option(
        False, "generate max_new_tokens tokens for every call; ignore the stop token", None, MEASURING
    )


def read_settings(arguments: list[str] | None = None) -> ServeSettings | None:
    """Read the options from a command line, the environment and a file; returns None where --print-config printed them.

    Raises:
        InvalidInput: a value or a key is not valid; the sentence names where it was set.
        NotPossibleHere: the file cannot be read.
    """
    return settings.settings_from(ServeSettings, _parser().parse_args(arguments))


def settings_of(path: Path | None, typed: Mapping[str, Any]) -> ServeSettings:
    """Combine typed options, the environment and the file at `path`; raises as `read_settings`."""
    return settings.settings_of(ServeSettings, path, typed)


def add_option(parser: argparse._ActionsContainer, name: str) -> None:
    """Add one of the server's options to a parser; the parsed namespace lacks it where it is not typed."""
    settings.add_option(parser, ServeSettings, name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echovlm-serve",
        description=(
            "Serve a bundle over gRPC, and over HTTP with --http. Every option can also be set in the environment "
            "(ECHOVLM_SLOTS=4) and in a TOML file."
        ),
        argument_default=argparse.SUPPRESS,
    )
    add_version(parser)
    settings.add_settings(parser, ServeSettings)
    return parser
