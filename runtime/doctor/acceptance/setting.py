"""What every step of an acceptance is given: the bundle, the options, and a server of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.bundle.signature import PublicKey
from echovlm_edge.runtime.resources.loopback_process import Served, port_file, running, script

STEPS, LOGS = "acceptance-steps", "logs"


class Skipped(Exception):
    """A step cannot run here; `str(skipped)` is the reason, one sentence."""


@dataclass(frozen=True)
class Setting:
    """What an acceptance was asked for.

    Attributes:
        bundle: its files are of the right sizes.
        folder: for results and logs.
        signers: of whom one must have signed the bundle.
        slots: sequences at once.
        minutes: of load.
        quick: few and short runs, to see that every step works.
        checks: folder of tests of the device, for pytest.
        say: is called with progress inside a step.
    """

    bundle: Bundle
    folder: Path
    signers: tuple[PublicKey, ...] = ()
    slots: int = 8
    minutes: float = 10.0
    quick: bool = False
    checks: Path | None = None
    say: Callable[[str], None] = lambda words: None

    @property
    def logs(self) -> Path:
        """The folder of the steps' logs, which are forgotten with their results."""
        return self.folder / STEPS / LOGS

    @property
    def exact(self) -> bool:
        """Whether texts must be equal to the token; elsewhere near ties may be decided otherwise in a batch."""
        return self.bundle.manifest.target == "cpu" and self.bundle.manifest.precision in ("int4", "int8")

    @contextmanager
    def server(self, step: str, *options: object) -> Iterator[Served]:
        """Serve the bundle by echovlm-serve on loopback until the context exits; its log is the step's, and is added to.

        Raises:
            NotPossibleHere: it does not start; the sentence quotes its log.
        """
        place = ("--bundle", self.bundle.path, "--listen", "127.0.0.1:0", "--port-file", port_file(self.folder))
        command = [script("echovlm-serve"), *map(str, (*place, "--slots", self.slots, *options))]
        port_file(self.folder).unlink(missing_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        try:
            with running(
                lambda lines: subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=lines),
                self.folder,
                self.logs / f"{step}.log",
                "echovlm-serve",
                mode="a",
            ) as served:
                yield served
        finally:
            port_file(self.folder).unlink(missing_ok=True)
