# SPDX-License-Identifier: Apache-2.0
"""``colocate merge``: a run directory from the archives of groups that were run apart."""

import argparse
from datetime import datetime
from pathlib import Path

from colocate.cli import common as command


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        run,
        "merge",
        "Make a run directory, its page and summary.csv of archives; exit code 1 when something is missing.",
        "colocate merge archives/*.jsonl",
    )
    parser.add_argument("archives", type=Path, nargs="+", metavar="ARCHIVE", help="a file of colocate run --archive")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="where the run goes (results)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (report.html in the first run)")
    parser.add_argument(
        "--gate",
        choices=("complete", "plan"),
        default="complete",
        help="what makes the exit code 0: nothing is missing, or the plan's own rule holds (complete)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the run, and tell where it is and what is wrong with it."""
    from colocate.report import headline, write_summary
    from colocate.results import merge, read_run

    with command.writing(options.results):
        merged = merge(options.archives, options.results, datetime.now())
    for line in (*merged.notes, *merged.missing):
        print(line)
    for run in merged.runs:
        with command.writing(run.path):
            write_summary(run)
    out: Path = options.out or merged.runs[0].path / "report.html"
    report = command.write_page([read_run(run.path) for run in merged.runs], out)
    for part in report.parts:
        print(headline(part))
    for run in merged.runs:
        print(f"run:     {command.near(run.path)}")
    print(f"report:  {command.near(out)}")
    if options.gate == "plan":
        return (
            command.SUCCESS
            if all(part.plan_verdict.holding == "holds" for part in report.parts)
            else command.CHECK_FAILED
        )
    return command.CHECK_FAILED if merged.missing else command.SUCCESS
