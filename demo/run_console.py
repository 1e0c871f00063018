"""Run the console (`make demo-console`): serve the demo's bundle by HTTP, with a simulated study to try, until it is stopped."""

from __future__ import annotations

import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.served import arguments, serving
from demo.run import BUNDLE, CHECKPOINT, FRAMES, SEED, run, show
from echovlm_edge.runtime.contracts.command import run_command

ADDRESS = "127.0.0.1:8080"
ENDING = (signal.SIGINT, signal.SIGTERM)


def main(given: list[str] | None = None) -> int:
    """Run the command, whose one argument is the page's address; returns its exit code."""
    address, *_ = [*(sys.argv[1:] if given is None else given), ADDRESS]
    return run_command(lambda: console(address))


def console(address: str) -> int:
    """Serve until Ctrl-C or SIGTERM, which end the server also while it starts."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if not (BUNDLE / "bundle.json").is_file():
        run("echovlm-build", "--checkpoint", CHECKPOINT, "--output", BUNDLE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study, server = folder / "study", folder / "server"
        server.mkdir()
        run("python", "-m", "demo.simulate", "--seed", SEED, "--frames", FRAMES, "--output", study)
        options = ("--http", address, "--console-study", study)
        show("echovlm-serve", *arguments(BUNDLE, server, *options))
        with serving(BUNDLE, server, *options, stdout=None):
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            print(f"\nOpen http://{address}/ and try the simulated study. Ctrl-C ends the server.", flush=True)
            signal.sigwait(ENDING)
    return 0


if __name__ == "__main__":
    sys.exit(main())
