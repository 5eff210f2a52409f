"""``colocate report``: the page and ``summary.csv`` again, from what is on disk."""

import argparse
from pathlib import Path

from colocate import commands as command


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        "report",
        "Rebuild the page and summary.csv from run directories; several runs become one page, cards kept apart.",
        "colocate report results/run_20261124_053000",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (report.html in the first run)")
    parser.add_argument("--against", type=Path, metavar="RUN", help="an earlier run to compare with, on the page too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the page, and tell where it is."""
    from colocate.report.comparison import compare
    from colocate.report.page import Report, document, headline
    from colocate.report.stored import parts, read_run
    from colocate.report.summary import write_summary
    from colocate.run_directory import RunDirectory, make_folder, write_text

    runs = [read_run(path) for path in dict.fromkeys(path.resolve() for path in options.runs)]
    comparison = None
    if options.against is not None:
        before = read_run(options.against)
        rows = [row for part in parts(runs) for row in part.counting]
        comparison = compare(before.rows, rows, (before.name, ", ".join(found.name for found in runs)))
    out: Path = options.out or runs[0].path / "report.html"
    make_folder(out.parent)
    report = Report.of(runs, out.resolve().parent, comparison)
    with command.writing(out):
        write_text(out, document(report))
    for found in runs:
        with command.writing(found.path):
            write_summary(RunDirectory(found.path))
    for part in report.parts:
        print(headline(part))
    print(f"report:  {command.near(out)}")
    for found in runs:
        print(f"summary: {command.near(found.path / 'summary.csv')}")
    return command.WELL
