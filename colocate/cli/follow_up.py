# SPDX-License-Identifier: Apache-2.0
"""``colocate next``: a plan of the pairs that a run recommends, at full length."""

import argparse
from pathlib import Path

from colocate.cli import common as command
from colocate.cli.arguments import whole


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        run,
        "next",
        "Write the plan that follows from a run: its stable and usable pairs with full epochs, ready to run.",
        "colocate next results/run_20261124_053000",
    )
    parser.add_argument("directory", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the plan goes (next.json in the run directory)")
    parser.add_argument(
        "--class",
        dest="classes",
        choices=("stable", "usable", "high-risk"),
        action="append",
        help="only pairs of this class; may be given several times (stable and usable)",
    )
    parser.add_argument(
        "--epochs",
        type=whole,
        metavar="N",
        help="epochs of every training (the catalog's default, else the program's own)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the plan, load it as a check, and tell how to run it; exit code 1 where nothing is recommended."""
    from colocate.advice import follow_up
    from colocate.results import read_run

    stored = read_run(options.directory)
    out: Path = options.out or options.directory / "next.json"
    classes = tuple(options.classes or ("stable", "usable"))
    plan = follow_up(stored, out.resolve().parent, classes, options.epochs)
    for line in plan.notes:
        print(line)
    if not plan.document["experiments"]:
        print(f"{stored.name}: no group is {' or '.join(classes)}; no plan is written")
        return command.CHECK_FAILED
    command.write_plan(plan.document, out)
    return command.SUCCESS
