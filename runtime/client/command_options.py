"""The options that commands which ask a server share: how tokens are chosen, and with which credentials the server is asked."""

from __future__ import annotations

import argparse
from pathlib import Path

from echovlm_edge.runtime.client.wire.credentials import Credentials
from echovlm_edge.runtime.contracts.request import Sampling


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Declare an option for each field of `Sampling`; `read_sampling` reads them."""
    add, default = parser.add_argument, Sampling()
    add("--max-new-tokens", type=int, default=default.max_new_tokens, metavar="N")
    add("--temperature", type=float, default=default.temperature, metavar="T", help="0 is greedy, the default")
    add("--top-k", type=int, default=default.top_k, metavar="N")
    add("--top-p", type=float, default=default.top_p, metavar="P")
    add("--repetition-penalty", type=float, default=default.repetition_penalty, metavar="R")
    add("--seed", type=int, default=default.seed, metavar="N")


def read_sampling(options: argparse.Namespace) -> Sampling:
    """Read the options of `add_sampling`.

    Raises:
        InvalidInput: one is outside its range.
    """
    return Sampling(
        options.max_new_tokens,
        options.temperature,
        options.top_k,
        options.top_p,
        options.repetition_penalty,
        options.seed,
    )


def add_image_tokens(parser: argparse.ArgumentParser) -> None:
    """Declare the bound on a frame's tokens."""
    parser.add_argument(
        "--image-tokens",
        type=_positive,
        metavar="N",
        help="visual tokens of a frame at most, for fewer than the server's bound; larger frames are scaled down",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Declare the options of TLS and of the bearer token; `read_credentials` reads them."""
    add = parser.add_argument
    add(
        "--tls-ca", type=Path, metavar="F", help="the authority that signed the server's certificate (PEM); enables TLS"
    )
    add("--tls-certificate", type=Path, metavar="F", help="this client's own certificate (PEM)")
    add("--tls-key", type=Path, metavar="F", help="its key")
    add("--token-file", type=Path, metavar="F", help="holds the bearer token that identifies this client")


def read_credentials(options: argparse.Namespace) -> Credentials:
    """Read the options of `add_credentials`.

    Raises:
        NotPossibleHere: the token's file cannot be read.
    """
    return Credentials.read(options.token_file, options.tls_ca, options.tls_certificate, options.tls_key)
