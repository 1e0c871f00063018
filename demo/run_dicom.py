"""Run the DICOM demo (`make demo-dicom`): a cart sends a simulated study by C-STORE, and a draft report comes back to a PACS.

Each step is a command that an operator would type; it is printed before it runs. The PACS is a storage SCP of this process.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage
from pynetdicom import AE, evt

from benchmarks.served import arguments, node_arguments, receiving, serving
from demo.run import BUNDLE, CHECKPOINT, SEED, run, show
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

REPORT_SECONDS = 300.0
QUIET_SECONDS = 3


def main() -> int:
    """Run the demo; returns its exit code."""
    return run_command(demo)


def demo() -> int:
    """Run the demo's commands one by one."""
    if not (BUNDLE / "bundle.json").is_file():
        run("echovlm-build", "--checkpoint", CHECKPOINT, "--output", BUNDLE)
    pacs = Pacs()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study, server, node, spool = (folder / part for part in ("study", "server", "node", "spool"))
        for path in (server, node):
            path.mkdir()
        run("python", "-m", "demo.simulate", "--seed", SEED, "--output", study)
        show("echovlm-serve", *arguments(BUNDLE, server))
        with serving(BUNDLE, server, stdout=None) as served:
            options = ("--destination", f"PACS@127.0.0.1:{pacs.port}", "--quiet-seconds", QUIET_SECONDS)
            show("echovlm-dicom", *node_arguments(spool, node, served.address, *options))
            with receiving(spool, node, served.address, *options, stdout=None) as received:
                send(sorted(study.glob("*.dcm")), received.address)
                print(f"\nThe node waits {QUIET_SECONDS} s for more, then has the report written.", flush=True)
                arrived = pacs.arrived.wait(REPORT_SECONDS)
                run("echovlm-dicom", "status", "--spool", spool)
                if not arrived:
                    raise NotPossibleHere(f"No report came: {received.log.read_text(encoding='utf-8')}")
    print(f"\nCame back to the PACS, about patient {pacs.report.PatientID}:\n")
    print("\n".join(lines(pacs.report)))
    print("\nThe model knows only simulated images and has no medical value.")
    return 0


def send(files: list[Path], address: str) -> None:
    """Send files with dcmtk's storescu, or with our own command where it is not installed."""
    host, _, port = address.partition(":")
    storescu = shutil.which("storescu")
    if storescu:
        words = ["storescu", "-aet", "CART", "-aec", "ECHOVLM", host, port, *map(str, files)]
        print(f"\n$ {' '.join(words)}", flush=True)
        if subprocess.run([storescu, *words[1:]], check=False).returncode:
            raise NotPossibleHere("storescu failed: see above.")
    else:
        run("echovlm-dicom", "send", *files, "--to", f"ECHOVLM@{address}", "--ae-title", "CART")


class Pacs:
    """A storage SCP that keeps the last report it is sent.

    Attributes:
        port: that it listens on.
        report: the report.
        arrived: is set with it.
    """

    def __init__(self) -> None:
        """Listen on a free port of loopback."""
        self.report, self.arrived = Dataset(), threading.Event()
        entity = AE("PACS")
        entity.add_supported_context(BasicTextSRStorage)
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)])
        assert server
        self.port = int(server.server_address[1])

    def _store(self, event: evt.Event) -> int:
        self.report = event.dataset
        self.arrived.set()
        return 0x0000


def lines(document: Dataset, depth: int = 0) -> list[str]:
    """List an SR's headings and texts, indented."""
    found = []
    for item in document.get("ContentSequence", ()):
        name = item.ConceptNameCodeSequence[0].CodeMeaning
        if item.ValueType == "CONTAINER":
            found += [f"{'  ' * depth}{name}", *lines(item, depth + 1)]
        elif item.ValueType == "TEXT":
            found.append(f"{'  ' * depth}{name}: {item.TextValue}")
        elif item.ValueType == "IMAGE":
            found.append(f"{'  ' * depth}{name}: image {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID}")
    return found


if __name__ == "__main__":
    sys.exit(main())
