"""The command-line options of a run. They act only when the feasibility cases are collected."""

import argparse
from pathlib import Path

import pytest

from colocate.cli import arguments
from colocate.errors import ColocateError
from colocate.plugin import stress, worth


def add_options(parser: pytest.Parser) -> None:
    """Declare the options, all in one group of ``pytest --help``."""
    group = parser.getgroup("colocate", "Can these two trainings share one GPU?")
    add = group.addoption
    add("--plan", type=Path, metavar="FILE", help="Plan to run (settings/parallel_feasibility_test.json).")
    add("--catalog", type=Path, metavar="FILE", help="Models catalog, in place of the one that the plan names.")
    add(
        "--device",
        choices=arguments.DEVICES,
        default="auto",
        help="Card to use. auto: a GPU where the NVIDIA library is there, else the virtual card (auto).",
    )
    add(
        "--card",
        type=card,
        metavar="CARD",
        help="Size of the card, as 8GB or a name of settings/cards.json as 'RTX 3080': that of the virtual card (the "
        "plan's size); a larger GPU is made as small by a ballast (its own size).",
    )
    add("--epochs", type=arguments.whole, metavar="N", help="Epochs of every foreground (the plan's number).")
    add("--results", type=Path, metavar="DIR", help="Where run directories are made (results).")
    add("--reports", type=Path, metavar="DIR", help="Where reports are written (reports).")
    add(
        "--gate",
        choices=("groups", "plan"),
        default="groups",
        help="What makes the exit code 0: every group feasible, or the plan's own rule held (groups).",
    )
    add(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="Go on with a run: keep what is finished and unchanged, run the rest; write --resume=RUN (the latest).",
    )
    add("--explain", action="store_true", help="Say what --resume would keep and run, and why; run nothing.")
    add(
        "--progress",
        type=arguments.seconds,
        default=30.0,
        metavar="SECONDS",
        help="How often a line tells what runs where the output is no terminal; 0 is never (30).",
    )
    add(
        "--predict",
        type=arguments.seconds,
        default=60.0,
        metavar="SECONDS",
        help="How long to predict, at the end, what could be tried for groups that do not fit; 0 is never (60).",
    )
    stress.add_option(group)
    worth.add_option(group)
    add(
        "--on",
        type=where,
        metavar="WHERE",
        help="Run the groups elsewhere: slurm or slurm:PARTITION, one job with one GPU per worker (this machine).",
    )
    add(
        "--slurm",
        default="",
        metavar="OPTIONS",
        help="With --on=slurm, options of srun for every job, as in --slurm='--account=lab --time=2:00:00'.",
    )
    add(
        "--journal",
        metavar="FILE",
        help="Append everything that a page needs of the groups to this file, for colocate merge (none).",
    )
    add(
        "--remedy",
        nargs="?",
        const="infeasible",
        choices=("infeasible", "undecided"),
        help="Try what is proposed for groups that do not fit, at the end; =undecided: also for those undecided.",
    )
    add(
        "--until-decided",
        action="store_true",
        help="End a group as soon as nothing can change its verdict any more; its epoch may then not be finished.",
    )
    add("--wait", type=arguments.seconds, default=0.0, metavar="SECONDS", help="How long to wait for a busy card (0).")


def card(text: str) -> str:
    """A size such as ``8GB`` or a name of the table of cards, as it was written.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    from colocate.plan.gpu_models import known_card

    try:
        known_card(text)
    except ColocateError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--card: ")) from error
    return text


def where(text: str) -> str:
    """``slurm`` or ``slurm:PARTITION``.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    engine, colon, partition = text.partition(":")
    if engine != "slurm" or (colon and not partition):
        raise argparse.ArgumentTypeError(f"expected slurm or slurm:PARTITION, got {text!r}")
    return text
