# SPDX-License-Identifier: Apache-2.0
"""``colocate verify``: judge recorded groups again."""

import argparse
from pathlib import Path

from colocate.cli import common as command


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        run,
        "verify",
        "Judge recorded groups again from what is on disk; needs no GPU.",
        "colocate verify results/run_20261124_053000",
    )
    parser.add_argument(
        "directory", type=Path, nargs="+", metavar="RUN", help="a run directory, or the folder of one group in it"
    )


def run(options: argparse.Namespace) -> int:
    """Print one line per group; fail if a verdict does not follow from its record."""
    from colocate.results import verify

    groups = [group for directory in options.directory for group in verify(directory)]
    for group in groups:
        print(group)
    return command.SUCCESS if all(group.agrees for group in groups) else command.CHECK_FAILED
