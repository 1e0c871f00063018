"""`echovlm-bundle`: install a bundle in the folder that a service serves from, return to the previous one, sign one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.bundle.installed import PREVIOUS, install, linked, roll_back
from echovlm_edge.runtime.bundle.loads import Loads
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.bundle.signature import SecretKey, sign_file
from echovlm_edge.runtime.bundle.signers import add_signers, read_signers
from echovlm_edge.runtime.contracts.command import REPEATED, add_version, run_command
from echovlm_edge.runtime.contracts.printable import printable

RELOAD = "The service serves it after systemctl reload echovlm-serve (SIGHUP)."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.action == "sign":
        key = SecretKey.read(options.key)
        for path in options.bundle:
            bundle = Bundle(path, finished=False)
            print(f"Signed: {sign_file(bundle.path / MANIFEST, key)}")
        return 0
    installs = options.action == "install"
    current = install(options.bundle, options.folder, read_signers(options)) if installs else roll_back(options.folder)
    print(f"Current: {printable(current.name)}. Previous: {_previous(options.folder, current)}. {RELOAD}")
    return 0


def _previous(folder: Path, current: Path) -> str:
    previous = linked(folder, PREVIOUS)
    if previous is None or previous == current.resolve():
        return "none"
    name = printable(previous.name)
    return name if Loads(folder).is_good(previous.name) else f"{name}, which was refused"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echovlm-bundle",
        description="Install a bundle where a service serves it, return to the previous one, sign one.",
    )
    add_version(parser)
    actions = parser.add_subparsers(dest="action", required=True)
    folder: dict[str, Any] = {
        "type": Path,
        "metavar": "FOLDER",
        "help": "the folder of bundles, echovlm-serve's --bundle",
    }
    install_parser = actions.add_parser(
        "install", help="copy a bundle into the folder, hash the copy, and make it current"
    )
    add = install_parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the bundle; one that lies in the folder already is not copied")
    add("folder", **folder)
    add_signers(install_parser, REPEATED)
    actions.add_parser("rollback", help="make the previous bundle current, and the reverse").add_argument(
        "folder", **folder
    )
    add = actions.add_parser("sign", help="sign bundles, as minisign -S -m BUNDLE/bundle.json does").add_argument
    add("bundle", type=Path, nargs="+", metavar="BUNDLE", help="the bundles")
    add("--key", type=Path, required=True, metavar="KEY", help="secret key without a password (minisign -G -W)")
    return parser
