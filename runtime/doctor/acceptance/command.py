"""`echovlm-accept`: run every step on this machine, judge the figures, and write one archive."""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.bundle.signature import PublicKey, SecretKey
from echovlm_edge.runtime.bundle.signers import add_signers, read_signers
from echovlm_edge.runtime.contracts.command import add_version, run_command
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.doctor.acceptance.archive import PAGE, write_archive
from echovlm_edge.runtime.doctor.acceptance.drawing.page import acceptance_page
from echovlm_edge.runtime.doctor.acceptance.journal import Journal
from echovlm_edge.runtime.doctor.acceptance.limits import CORRECTNESS, judge, read_limits
from echovlm_edge.runtime.doctor.acceptance.privacy import Redaction
from echovlm_edge.runtime.doctor.acceptance.running import run_steps
from echovlm_edge.runtime.doctor.acceptance.schema import VERSION, Acceptance, State
from echovlm_edge.runtime.doctor.acceptance.setting import STEPS, Setting
from echovlm_edge.runtime.doctor.acceptance.steps import steps
from echovlm_edge.runtime.profiling.drawing.rendering import plotting_library
from echovlm_edge.runtime.profiling.measurement.machine import this_machine
from echovlm_edge.runtime.profiling.schema import BundleFacts, Machine
from echovlm_edge.runtime.resources.jetson import power_modes

PASSED, FAILED = 0, 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 passed, 1 not."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: _accept(options))


def _accept(options: argparse.Namespace) -> int:
    if not 0 < options.minutes < math.inf or options.slots < 1:
        raise InvalidInput("--minutes and --slots must be above 0.")
    library = plotting_library("run echovlm-accept where it is")
    key = SecretKey.read(options.sign) if options.sign else None
    signers = read_signers(options)
    planned = steps(options.minutes, power_modes() if options.power_modes else None)
    known = [name for step in planned for name in step.figures]
    limits = read_limits(options.limits, [step.name for step in planned], known)
    limits_text = (options.limits or CORRECTNESS).read_text(encoding="utf-8")
    console, setting = Console(), _setting(options, signers)
    machine = this_machine()
    redaction = Redaction.of(setting.bundle.path, setting.folder, setting.checks)
    journal, changed = Journal.open(setting.folder / STEPS, _key(options, setting, machine))
    if changed:
        console.print(f"{changed[0].upper()}{changed[1:]} changed since the run that was interrupted: it begins again.")
    results = run_steps(planned, setting, journal, redaction, console)
    judged, failures = judge(results, limits)
    accepted = Acceptance(
        "echovlm-acceptance",
        VERSION,
        datetime.now(UTC).isoformat(timespec="seconds"),
        not failures,
        failures,
        options.name,
        options.quick,
        machine,
        _facts(setting.bundle),
        tuple(results),
        judged,
    )
    archive = write_archive(setting.folder, accepted, acceptance_page(accepted, library), limits_text, redaction, key)
    journal.close()
    _print_verdict(console, accepted)
    console.print(
        f"Send back {archive}; to read it here, open {setting.folder / PAGE}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return PASSED if accepted.passed else FAILED


def _setting(options: argparse.Namespace, signers: tuple[PublicKey, ...]) -> Setting:
    bundle = Bundle(options.bundle.absolute())
    manifest = bundle.manifest
    if options.target and options.target != manifest.target:
        raise NotPossibleHere(
            f"The bundle {bundle.path} is for {manifest.target}, not {options.target}: give the bundle for {options.target}, "
            f"or --target {manifest.target}."
        )
    folder = options.output.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotPossibleHere(
            f"The folder {folder} cannot be made ({error.strerror}): give another --output."
        ) from None
    if options.checks and not options.checks.is_dir():
        raise InvalidInput(f"--checks {options.checks} is no folder: name the folder of the tests, such as tests/gpu.")
    slots = min(options.slots, manifest.most_slots or options.slots)
    return Setting(
        bundle, folder, signers, slots, options.minutes, options.quick, options.checks and options.checks.absolute()
    )


def _key(options: argparse.Namespace, setting: Setting, machine: Machine) -> dict[str, object]:
    """Return what results depend on: if it changes, earlier ones count no more."""
    manifest = (setting.bundle.path / MANIFEST).read_bytes()
    given = [options.minutes, options.quick, options.power_modes, setting.slots, str(setting.checks or "")]
    signers = [signer.key.hex() for signer in setting.signers]
    return {
        "the bundle": hashlib.sha256(manifest).hexdigest(),
        "the machine": asdict(machine),
        "the options": [*given, signers],
    }


def _facts(bundle: Bundle) -> BundleFacts:
    manifest = bundle.manifest
    return BundleFacts(
        manifest.source.name, manifest.bundle_id, manifest.target, manifest.precision, manifest.limits.max_sequence
    )


def _print_verdict(console: Console, accepted: Acceptance) -> None:
    for sentence in accepted.failures:
        console.print(sentence, style="red", markup=False, highlight=False, soft_wrap=True)
    skipped = sum(step.state is State.SKIPPED for step in accepted.steps)
    verdict = Text("Passed", "bold green") if accepted.passed else Text("Not passed", "bold red")
    console.print(Text.assemble(verdict, f", {skipped} of {len(accepted.steps)} steps skipped."))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echovlm-accept",
        description="Prove on this machine that a bundle computes, serves and performs as it should, and write one archive.",
        epilog="Interrupted and run again, it continues with the next step. Exit codes: 0 passed; 1 not passed; 2 a wrong "
        "option or file.",
    )
    add_version(parser)
    add = parser.add_argument
    add(
        "--bundle", type=Path, required=True, metavar="DIR", help="output folder of echovlm-build, or of echovlm-bundle"
    )
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder for the archive, the page and the steps' results",
    )
    add("--target", metavar="NAME", help="refuse a bundle that is for another target, such as cpu")
    add(
        "--limits",
        type=Path,
        metavar="F",
        help="TOML file of limits (default: correctness alone, see docs/acceptance.md)",
    )
    add("--minutes", type=float, default=10.0, metavar="N", help="of load (default 10)")
    add("--slots", type=int, default=8, metavar="N", help="sequences at once, fewer where memory is short (default 8)")
    add("--quick", action="store_true", help="few and short runs, to see that every step works")
    add(
        "--power-modes",
        action="store_true",
        help="measure in every power mode of nvpmodel, as root; without this the mode is never changed",
    )
    add_signers(parser)
    add(
        "--checks",
        type=Path,
        metavar="DIR",
        help="run this folder's tests of the device by pytest, such as tests/gpu of the source archive",
    )
    add("--sign", type=Path, metavar="KEY", help="sign the archive's hashes with this secret key of minisign")
    add(
        "--name",
        default="",
        metavar="TEXT",
        help="put this name of a device or place into the archive, which has none else",
    )
    return parser
