"""Rehearse an installation from a release without a network (`make rehearse-release`).

python -m deploy.rehearsal dist --processor aarch64

Makes an empty root of Debian, enters it without a network, and does there what docs/release.md says: verify, install, try, prove. Needs
mmdebstrap; another processor than this computer's also a static qemu. Collecting the packages needs a network.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import time
from pathlib import Path

from deploy.rehearsal.empty_root import ARCHITECTURES
from deploy.rehearsal.journey import IMPORTS, OFFLINE, journey
from deploy.rehearsal.namespace import Namespace, check_tools, emulator_for
from deploy.rehearsal.preparation import Rehearsal
from deploy.rehearsal.running import run, say
from echovlm_edge.runtime.contracts.command import REPEATED, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 passed, 1 not passed, 2 not possible here."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.rehearsal", description="Rehearse an installation from a release without a network."
    )
    parser.add_argument("dist", type=Path, metavar="DIST", help="the folder of a release (make release)")
    parser.add_argument("--processor", choices=sorted(ARCHITECTURES), default=platform.machine())
    parser.add_argument("--suite", default="bookworm", help="release of Debian (default bookworm)")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/demo"), metavar="DIR", help="the demo's, built")
    parser.add_argument(
        "--extra",
        **REPEATED,
        default=[],
        choices=sorted(IMPORTS),
        metavar="NAME",
        help=f"extras to collect and install (default {' '.join(OFFLINE)}); with demo, the demo's bundle is built there too",
    )
    parser.add_argument("--public-key", type=Path, metavar="KEY", help="that the release was signed with")
    parser.add_argument("--emulator", type=Path, metavar="FILE", help="a static qemu-user, for another processor")
    parser.add_argument("--emulated", default="", metavar="MODEL", help="what qemu shows, as cortex-a76")
    parser.add_argument(
        "--place", type=Path, default=Path("build/rehearsal"), metavar="DIR", help="a folder to make and delete"
    )
    parser.add_argument("--keep", action="store_true", help="keep that folder")
    parser.add_argument(
        "--first", type=int, default=1, metavar="N", help="begin with this step, in a folder that was kept"
    )
    options = parser.parse_args(arguments)
    extras = tuple(options.extra or OFFLINE)

    def command() -> int:
        check_tools()
        emulator = emulator_for(options.processor, options.emulator)
        if options.place.exists() != (options.first > 1):
            wrong = "does not exist: begin with step 1" if options.first > 1 else "exists: delete it"
            raise NotPossibleHere(f"{options.place} {wrong}, or give another --place.")
        rehearsal = Rehearsal(
            options.dist, options.bundle, options.processor, options.suite, extras, options.public_key, options.place
        )
        began = time.perf_counter()
        try:
            if options.first == 1:
                rehearsal.prepare()
            steps = journey(options.processor, extras, options.public_key is not None)
            log = options.place / "rehearsal.log"
            passed = run(steps, options.first, Namespace(rehearsal.root, emulator, options.emulated).words, log)
        finally:
            if not options.keep:
                shutil.rmtree(options.place, ignore_errors=True)
        verdict = "Passed" if passed else "Not passed"
        say(f"{verdict}: {options.processor}, {options.suite}, {', '.join(extras)}", began)
        return 0 if passed else 1

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
