"""``colocate compare``: what changed between two runs."""

import argparse
from pathlib import Path

from colocate import commands as command


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        "compare",
        "Say what changed between two runs: verdicts, peaks, times. Exit code 1 when a peak grew too much.",
        "colocate compare results/run_20261123_053000 results/run_20261124_053000 --fail-above 200MB",
    )
    parser.add_argument("before", type=Path, help="the earlier run directory")
    parser.add_argument("after", type=Path, help="the later run directory")
    parser.add_argument(
        "--fail-above",
        type=command.size,
        metavar="SIZE",
        help="exit with 1 when a peak grew by more than this, or is not known any more",
    )
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write the later run's page with the comparison in it"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the comparison; a finding where a peak grew by more than was allowed."""
    from colocate.report.comparison import compare, lines
    from colocate.report.page import Report, document
    from colocate.report.stored import read_run
    from colocate.run_directory import make_folder, write_text
    from colocate.units import format_mib

    before, after = read_run(options.before), read_run(options.after)
    found = compare(before.rows, after.rows, (before.name, after.name))
    for line in lines(found):
        print(line)
    if options.page is not None:
        make_folder(options.page.resolve().parent)
        with command.writing(options.page):
            write_text(options.page, document(Report.of([after], options.page.resolve().parent, found)))
        print(f"report:  {command.near(options.page)}")
    if options.fail_above is None:
        return command.WELL
    grown, unknown = found.grown(options.fail_above), found.unknown
    for change in grown:
        print(
            f"{change.group}: grew by {format_mib(change.peak_bytes)}, at most {format_mib(options.fail_above)} allowed"
        )
    for change in unknown:
        print(f"{change.group}: its peak was known before and is not any more")
    return command.FINDING if grown or unknown else command.WELL
