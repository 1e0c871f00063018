"""`echovlm-dicom`: run the node, or look at its spool and send to it."""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import warnings

from echovlm_edge.runtime.contracts.command import add_version, run_command
from echovlm_edge.runtime.contracts.settings import add_settings, settings_from
from echovlm_edge.runtime.dicom_node.settings import NodeSettings

END_SECONDS = 5.0  # until the process ends even if a thread hangs
TOOLS = """Other commands, each with --help:
  echovlm-dicom status     the studies in the spool and their states
  echovlm-dicom complete   take a study to be complete now
  echovlm-dicom resend     send a study's report again, or try again to have it written
  echovlm-dicom send       send files or folders to a node, to try it"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    match given[:1]:
        case ["status"]:
            from echovlm_edge.runtime.dicom_node import status

            shown = status.status_parser().parse_args(given[1:])
            return run_command(lambda: status.run_status(shown))
        case ["complete" | "resend" as word]:
            from echovlm_edge.runtime.dicom_node import status

            parser = status.complete_parser() if word == "complete" else status.resend_parser()
            asked = parser.parse_args(given[1:])
            return run_command(lambda: status.run_on_studies(word, asked))
        case ["send"]:
            from echovlm_edge.runtime.dicom_node import sending

            sent = sending.send_parser().parse_args(given[1:])
            return run_command(lambda: sending.run_send(sent))
    parsed = node_parser().parse_args(given)
    return run_command(lambda: _run(settings_from(NodeSettings, parsed)))


def node_parser() -> argparse.ArgumentParser:
    """Make the parser of the node itself."""
    parser = argparse.ArgumentParser(
        prog="echovlm-dicom",
        description="Receive studies by DICOM and deliver draft reports. Every option can also be set in the environment "
        f"({NodeSettings.EXAMPLE}) and in a TOML file.",
        epilog=TOOLS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add_version(parser)
    add_settings(parser, NodeSettings)
    return parser


def _run(chosen: NodeSettings | None) -> int:
    if chosen is None:
        return 0
    from echovlm_edge.runtime.dicom_node.metrics import serve_metrics
    from echovlm_edge.runtime.dicom_node.node import Node
    from echovlm_edge.runtime.observability import logs
    from echovlm_edge.runtime.resources.atomic_file import write_whole
    from echovlm_edge.runtime.serving.supervision.process_end import end_process
    from echovlm_edge.runtime.serving.supervision.signals import Signals
    from echovlm_edge.runtime.serving.supervision.systemd import ServiceManager

    logs.start(chosen.log == "json")
    warnings.simplefilter("ignore")  # pydicom's quote what peers send
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would contain patients' data
    with Signals() as signals:
        manager = ServiceManager()
        node = Node(chosen)
        scraped = serve_metrics(chosen.metrics, node) if chosen.metrics else None
        if chosen.port_file:
            write_whole(chosen.port_file, f"{node.listener.port}\n".encode(), "The port file")
        print(f"Receiving as {chosen.ae_title} on {node.address}", flush=True)
        manager.ready()
        while signals.wait() == signal.SIGHUP:
            node.renew_certificates()  # other files are read again by themselves, or at a restart
        end_process(END_SECONDS, manager.stopping, *([scraped.close] if scraped else []), node.close)


if __name__ == "__main__":
    sys.exit(main())
