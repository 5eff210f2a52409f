# SPDX-License-Identifier: Apache-2.0
"""``colocate compare``: say what changed between runs, in the terminal, on a page and in a CI job."""

import argparse
import os
from pathlib import Path

from colocate.cli import common as command
from colocate.cli.arguments import size


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        run,
        "compare",
        "Say what changed between two runs: verdicts, peaks, times. Exit code 1 when a peak grew too much.",
        "colocate compare results/run_20261123_053000 results/run_20261124_053000 --fail-above 200MB",
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="the run directory of the earlier run")
    parser.add_argument("after", type=Path, metavar="AFTER", help="that of the later one")
    parser.add_argument(
        "--fail-above",
        type=size,
        metavar="SIZE",
        help="exit with 1 when a peak grew by more than this or is unknown now, or a feasible group is not any more",
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the later run's page with the comparison in it"
    )


def run(options: argparse.Namespace) -> int:
    """Print the comparison; the check fails where a peak grew by more than was allowed, or a group fits no more."""
    from colocate.report import compare, github, lines
    from colocate.results import read_run

    before, after = read_run(options.before), read_run(options.after)
    found = compare(before.results, after.results, (before.name, after.name))
    for line in lines(found):
        print(line)
    if options.page is not None:
        command.write_page([after], options.page, found)
        print(f"report:  {command.near(options.page)}")
    markdown = github.of_comparison(found, options.fail_above)
    with command.writing(Path(os.environ.get(github.SUMMARY, ""))):
        for line in github.publish(markdown, github.annotations_of_comparison(found, options.fail_above)):
            print(line)
    if options.fail_above is None:
        return command.SUCCESS
    wrong = {diff.group: why for diff in found.diffs if (why := github.broken(diff, options.fail_above))}
    for group, why in wrong.items():
        print(f"{group}: {why}")
    return command.CHECK_FAILED if wrong else command.SUCCESS
