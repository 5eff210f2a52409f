"""The command-line options of a run. They act only when the feasibility cases are collected."""

import argparse
from pathlib import Path

import pytest

from colocate.cli import arguments
from colocate.errors import ColocateError
from colocate.plugin import speedup, stress


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
        help="GPU to use. auto: a GPU where the NVIDIA library is there, else the virtual GPU (auto).",
    )
    add(
        "--gpu",
        type=gpu,
        metavar="GPU",
        help="Size of the GPU, as 8GB or a name of settings/gpu_models.json as 'RTX 3080': that of the virtual GPU "
        "(the plan's size); a larger GPU is made as small by a balloon (its own size).",
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
    add("--resume-dry-run", action="store_true", help="Say what --resume would keep and run, and why; run nothing.")
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
    speedup.add_option(group)
    add(
        "--executor",
        type=where,
        metavar="WHERE",
        help="Run the groups elsewhere: slurm or slurm:PARTITION, one job with one GPU per worker (this machine).",
    )
    add(
        "--slurm",
        default="",
        metavar="OPTIONS",
        help="With --executor=slurm, options of srun for every job, as in --slurm='--account=lab --time=2:00:00'.",
    )
    add(
        "--archive",
        metavar="FILE",
        help="Append everything that a page needs of the groups to this file, for colocate merge (none).",
    )
    add(
        "--try-fixes",
        nargs="?",
        const="infeasible",
        choices=("infeasible", "undecided"),
        help="Try what is proposed for groups that do not fit, at the end; =undecided: also for those undecided.",
    )
    add("--wait", type=arguments.seconds, default=0.0, metavar="SECONDS", help="How long to wait for a busy GPU (0).")


def gpu(text: str) -> str:
    """A size such as ``8GB`` or a name of the table of GPUs, as it was written.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    from colocate.plan import gpu_model

    try:
        gpu_model(text)
    except ColocateError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--gpu: ")) from error
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
