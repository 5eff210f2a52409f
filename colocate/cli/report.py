# SPDX-License-Identifier: Apache-2.0
"""``colocate report``: the page and ``summary.csv`` again, from what is on disk."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from colocate.cli import common as command
from colocate.cli.arguments import whole

if TYPE_CHECKING:
    from colocate.plan import Plan
    from colocate.results import StoredRun


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        run,
        "report",
        "Rebuild the page and summary.csv from run directories; several runs become one page, GPUs kept apart.",
        "colocate report results/run_20261124_053000",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (report.html in the first run)")
    parser.add_argument(
        "--predict",
        nargs="?",
        type=whole,
        const=600,
        metavar="SECONDS",
        help="first predict what could be tried for groups that do not fit, for at most so long (600)",
    )


def run(options: argparse.Namespace) -> int:
    """Write the page, and tell where it is."""
    from colocate.report import headline, write_summary
    from colocate.results import RunDirectory, read_run

    if options.predict is not None:
        for path in options.runs:
            _predict(read_run(path), options.predict)
    runs = [read_run(path) for path in dict.fromkeys(path.resolve() for path in options.runs)]
    out: Path = options.out or runs[0].path / "report.html"
    report = command.write_page(runs, out)
    paths, headlines = [found.path for found in runs], [headline(part) for part in report.parts]
    del runs, report  # ten thousand rows are not to be held beside those of the summary
    for path in paths:
        with command.writing(path):
            write_summary(RunDirectory(path))
    print("\n".join(headlines))
    print(f"report:  {command.near(out)}")
    for path in paths:
        print(f"summary: {command.near(path / 'summary.csv')}")
    return command.SUCCESS


def _predict(run: "StoredRun", budget_s: float) -> None:
    """Put proposals with predicted peaks into the run, for the groups that its plan still has as they were."""
    from colocate.advice import Answer, advise, is_unfit
    from colocate.harness import Cache
    from colocate.results import RunDirectory
    from colocate.units import plural

    unfit = [row for row in run.results if is_unfit(row)]
    plan = _plan_of(run)
    wanted = []
    for row in unfit:
        group = plan.by_id.get(row.group)
        if row.folder is None or group is None or group.content_hash != row.content_hash:
            print(f"{row.group}: its settings have changed since the run; nothing is predicted for it")
        else:
            wanted.append((group, row.folder))
    said = advise(RunDirectory(run.path), wanted, plan.load_catalog(), budget_s=budget_s, cache=Cache.of_user())
    for group, found in said:
        fitting = [one for one in found if one.answer is Answer.FITS]
        print(f"{group.id}: {len(fitting)} of {plural(len(found), 'proposal')} predicted to fit")


def _plan_of(run: "StoredRun") -> "Plan":
    """The plan as it was run: from where it was, with the same catalog and number of epochs.

    Raises:
        ColocateError: it cannot be read any more.
    """
    from colocate.plan import load_plan

    given = re.search(r"--epochs[= ](\d+)", " ".join(run.info.arguments))
    epochs = int(given[1]) if given else None
    return load_plan(str(run.plan.path), run.plan.catalog, epochs=epochs)
