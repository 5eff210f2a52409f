# SPDX-License-Identifier: Apache-2.0
"""``colocate calibrate``: figures of a GPU out of evidence that was measured on it."""

import argparse
from pathlib import Path

from colocate.cli import common as command


def add(commands: command.Commands) -> None:
    """Declare the subcommand."""
    parser = command.new(
        commands,
        "calibrate",
        "Propose a GPU's context, baseline and the error bars of predictions from evidence measured on it.",
        "colocate calibrate docs/evidence/h100-2026-12-01 --update",
    )
    parser.add_argument(
        "folder", type=Path, nargs="+", metavar="FOLDER", help="a folder that scripts/gpu-evidence has written"
    )
    parser.add_argument("--update", action="store_true", help="put context and baseline into the table of GPUs")
    parser.add_argument("--table", type=Path, help="another table than settings/gpu_models.json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the evidence proposes; change the table where that is asked for."""
    from colocate.advice import calibrate, proposal, update_table
    from colocate.plan import TABLE

    found = calibrate(options.folder)
    for line in proposal(found):
        print(line)
    if options.update:
        table = options.table or TABLE
        with command.writing(table):
            print(update_table(found, table))
    return command.SUCCESS
