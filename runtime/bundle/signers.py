"""The option --require-signature of the commands that load a bundle; the servers' is one of their settings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.bundle.signature import PublicKey
from echovlm_edge.runtime.contracts.command import SEVERAL
from echovlm_edge.runtime.contracts.errors import InvalidInput


def add_signers(parser: argparse._ActionsContainer, shape: Mapping[str, Any] = SEVERAL) -> None:
    """Declare the option; its `shape` is REPEATED where the command has arguments."""
    parser.add_argument(
        "--require-signature",
        type=Path,
        **shape,
        default=[],
        metavar="PUBKEY",
        help="load the bundle only if one of these keys of minisign has signed it, and check every file's hash",
    )


def read_signers(options: argparse.Namespace) -> tuple[PublicKey, ...]:
    """Read the keys that were given.

    Raises:
        NotPossibleHere: a file is no public key.
        InvalidInput: a server is asked, which loads its bundle itself.
    """
    if options.require_signature and getattr(options, "server", None):
        raise InvalidInput("--require-signature is for --bundle: give it to the server, which loads its bundle itself.")
    return tuple(PublicKey.read(file) for file in options.require_signature)
