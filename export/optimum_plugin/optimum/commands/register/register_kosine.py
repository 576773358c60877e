"""Registers `optimum-cli export kosine` where optimum is installed.

optimum looks for files in the namespace package `optimum.commands.register`; this one adds a
subcommand with the arguments of `kosine export`, and runs it.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

__all__ = ["REGISTER_COMMANDS"]


class KosineExportCommand(BaseOptimumCLICommand):
    """`kosine export`, under optimum's roof."""

    COMMAND = CommandInfo(name="kosine", help="Export a sentence encoder to a kosine bundle.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        # Imported late: optimum loads this file for every command it runs.
        from kosine_export.command import add_arguments

        add_arguments(parser)

    def run(self) -> None:
        from kosine.cli import guarded
        from kosine_export.command import run

        sys.exit(guarded(lambda: run(self.args)))


REGISTER_COMMANDS = [(KosineExportCommand, ExportCommand)]
