"""`make demo`: builds a bundle, serves it, asks for a report about a real ultrasound DICOM file, and stops the server.

Each step is the command an integrator would type; it is printed before it runs.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.errors import NotPossibleHere
from echovlm_edge.runtime.sample import sample_image

CHECKPOINT = Path("tests/golden/checkpoint")
BUNDLE = Path("bundles/demo")
START_SECONDS = 60.0


def main() -> int:
    """Run the demo; returns its exit code."""
    return run_command(demo)


def demo() -> int:
    """The journey, command by command."""
    run("echovlm-build", "--checkpoint", CHECKPOINT, "--output", BUNDLE, "--precision", "fp32")
    with tempfile.TemporaryDirectory() as folder:
        image, port_file = Path(folder, "cardiac.dcm"), Path(folder, "port")
        image.write_bytes(sample_image().data)
        serve = show("echovlm-serve", "--bundle", BUNDLE, "--listen", "127.0.0.1:0", "--port-file", port_file)
        with subprocess.Popen(serve) as server:
            try:
                address = f"127.0.0.1:{wait_for_port(server, port_file)}"
                run("echovlm-report", "--server", address, "--image", image, "--max-new-tokens", "48")
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait()
    print("This checkpoint is random: it shows the journey, and what it writes means nothing.")
    return 0


def show(command: str, *arguments: object) -> list[str]:
    """Print a command as it would be typed; returns it with its full path."""
    words = [command, *map(str, arguments)]
    print(f"\n$ {shlex.join(words)}", flush=True)
    return [str(Path(sys.executable).with_name(command)), *words[1:]]


def run(command: str, *arguments: object) -> None:
    """Show and run a command.

    Raises:
        NotPossibleHere: it failed; it has said why.
    """
    if subprocess.run(show(command, *arguments), check=False).returncode:
        raise NotPossibleHere(f"{command} failed: see above.")


def wait_for_port(server: subprocess.Popen[bytes], port_file: Path) -> str:
    """The port that the server writes once it answers.

    Raises:
        NotPossibleHere: it stopped, or took too long.
    """
    give_up = time.monotonic() + START_SECONDS
    while not port_file.exists():
        if server.poll() is not None or time.monotonic() > give_up:
            raise NotPossibleHere("echovlm-serve did not start: see above.")
        time.sleep(0.05)
    return port_file.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    sys.exit(main())
