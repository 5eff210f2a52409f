# SPDX-License-Identifier: Apache-2.0
"""The subcommands of ``colocate``, one module each.

A module has ``add(commands)``, which declares its arguments, and ``run``, a function from the parsed options to an exit
code: 0 success, 1 a check failed, 2 wrong input, 3 undecided. What it needs it imports when it runs, so that
``--help`` is quick.
"""

import argparse
import contextlib
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from colocate.cli.arguments import whole
from colocate.errors import ColocateError

if TYPE_CHECKING:
    from colocate.harness import Cache
    from colocate.plan import GpuModel
    from colocate.report import Comparison, Report
    from colocate.results import StoredRun

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
SUCCESS, CHECK_FAILED, WRONG_INPUT, UNDECIDED = 0, 1, 2, 3


def new(
    commands: Commands, run: Callable[[argparse.Namespace], int], name: str, summary: str, example: str
) -> argparse.ArgumentParser:
    """Declare a subcommand; ``example`` is shown below its arguments in ``--help``: one line, or a whole text."""
    raw = argparse.RawDescriptionHelpFormatter if "\n" in example else argparse.HelpFormatter
    epilog = example if "\n" in example else f"example: {example}"
    parser = commands.add_parser(name, help=summary, description=summary, epilog=epilog, formatter_class=raw)
    parser.set_defaults(run=run)
    return parser


def near(path: Path) -> str:
    """A path as one would type it from here."""
    return os.path.relpath(path)


def write_plan(document: dict[str, Any], path: Path, *, what: str | None = None) -> None:
    """Write a plan, load it as a check, and print where it is, what is in it, and how to run it.

    Raises:
        ColocateError: it cannot be written.
        PlanError: it does not load.
    """
    from colocate.files import make_folder, write_json
    from colocate.plan import load_plan

    make_folder(path.resolve().parent)
    with writing(path):
        write_json(path, document)
    plan = load_plan(path)
    print(f"plan: {near(path)}: {', '.join(plan.ids) if what is None else f'{len(plan.groups)} groups{what}'}")
    print(f"run:  colocate run {near(path)}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error of one line.

    Raises:
        ColocateError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ColocateError(f"could not write {near(path)}: {error.strerror or error}") from error


def write_page(runs: "list[StoredRun]", out: Path, comparison: "Comparison | None" = None) -> "Report":
    """Write the page of some runs; what it is about.

    Raises:
        ColocateError: it cannot be written.
    """
    from colocate.files import make_folder
    from colocate.report import Report, write

    report = Report.of(runs, out.resolve().parent, comparison, out.name)
    make_folder(report.folder)
    with writing(out):
        write(report)
    return report


# --- arguments that several commands have -----------------------------------------------------------------------------


def takes_dry_runs(parser: argparse.ArgumentParser) -> None:
    """Declare ``--timeout`` and ``--no-cache``; ``COLOCATE_EFFORT`` says how far every dry run goes."""
    parser.add_argument("--timeout", type=whole, default=600, metavar="S", help="seconds per dry run (600)")
    parser.add_argument("--no-cache", action="store_true", help="dry-run everything again, and keep nothing")


def takes_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def cache(options: argparse.Namespace) -> "Cache | None":
    """Return the cache of earlier dry runs, or None with ``--no-cache``."""
    from colocate.harness import Cache

    return None if options.no_cache else Cache.of_user()


def gpu_model(options: argparse.Namespace, gpu_bytes: int) -> "GpuModel":
    """The GPU that ``--gpu`` names, else one of a size."""
    from colocate.plan import gpu_models

    return gpu_models.gpu_model(options.gpu) if options.gpu else gpu_models.model_of_size(gpu_bytes)


# --- words ------------------------------------------------------------------------------------------------------------

WIDTH = 80


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """Lines of at most 80 columns, the second and later ones indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent)
