"""`optimum-cli export echovlm`: the build, for integrators who start in that ecosystem.

Optimum loads every file in its namespace folder optimum/commands/register; CMakeLists.txt installs this one there.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class EchoVLMExportCommand(BaseOptimumCLICommand):
    """Takes echovlm-build's options and runs it."""

    COMMAND = CommandInfo(name="echovlm", help="Build an EchoVLM Edge bundle of engines from an EchoVLM checkpoint.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options."""
        from echovlm_edge.export.build_engines import add_options

        add_options(parser)

    def run(self) -> None:
        """Build, and exit with the command's exit code."""
        from echovlm_edge.export.build_engines import run

        raise SystemExit(run(self.args))


REGISTER_COMMANDS = [(EchoVLMExportCommand, ExportCommand)]
