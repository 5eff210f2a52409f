# SPDX-License-Identifier: Apache-2.0
"""The options of a run, declared once: ``--plan`` of ``colocate run`` is ``--colocate-plan`` of pytest.

pytest's command line belongs to many plugins, so there every option has our prefix. Where nobody else's options are
around, in ``colocate run`` and in this repository, the short spelling does.
"""

import argparse
from pathlib import Path
from typing import Any

from colocate.cli import arguments

PREFIX = "--colocate-"


def gpu(text: str) -> str:
    """Check a size such as ``8GB`` or a name of the table of GPUs; returns it as it was written.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    from colocate.errors import ColocateError
    from colocate.plan import gpu_model

    try:
        gpu_model(text)
    except ColocateError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--gpu: ")) from error
    return text


def where(text: str) -> str:
    """Check ``slurm`` or ``slurm:PARTITION``.

    Raises:
        argparse.ArgumentTypeError: the text is neither.
    """
    engine, colon, partition = text.partition(":")
    if engine != "slurm" or (colon and not partition):
        raise argparse.ArgumentTypeError(f"expected slurm or slurm:PARTITION, got {text!r}")
    return text


def resolution(text: str) -> int:
    """Read a size of at least 2 MiB, which is what a driver gives out at a time.

    Raises:
        argparse.ArgumentTypeError: the text is no size, or a smaller one.
    """
    from colocate.advice import LEAST_RESOLUTION_BYTES
    from colocate.units import format_mib

    size = arguments.size(text)
    if size < LEAST_RESOLUTION_BYTES:
        raise argparse.ArgumentTypeError(f"expected at least {format_mib(LEAST_RESOLUTION_BYTES)}, got {text!r}")
    return size


_FLAG: dict[str, Any] = {"action": "store_true", "default": False}

OPTIONS: dict[str, dict[str, Any]] = {
    "plan": {"type": Path, "metavar": "FILE", "help": "Plan to run (settings/parallel_feasibility_test.json)."},
    "catalog": {"type": Path, "metavar": "FILE", "help": "Models catalog, in place of the one that the plan names."},
    "device": {
        "choices": arguments.DEVICES,
        "default": "auto",
        "help": "GPU to use. auto: a GPU where the NVIDIA library is there, else the virtual GPU (auto).",
    },
    "gpu": {
        "type": gpu,
        "metavar": "GPU",
        "help": "Size of the GPU, as 8GB or a name of settings/gpu_models.json as 'RTX 3080': that of the virtual GPU "
        "(the plan's size); a larger GPU is made as small by a balloon (its own size).",
    },
    "epochs": {"type": arguments.whole, "metavar": "N", "help": "Epochs of every foreground (the plan's number)."},
    "results": {"type": Path, "metavar": "DIR", "help": "Where run directories are made (results)."},
    "reports": {"type": Path, "metavar": "DIR", "help": "Where reports are written (reports)."},
    "gate": {
        "choices": ("groups", "plan"),
        "default": "groups",
        "help": "What makes the exit code 0: every group feasible, or the plan's own rule held (groups).",
    },
    "resume": {
        "nargs": "?",
        "const": "",
        "metavar": "RUN",
        "help": "Go on with a run: keep what is finished and unchanged, run the rest; write =RUN (the latest).",
    },
    "resume-dry-run": {**_FLAG, "help": "Say what resuming would keep and run, and why; run nothing."},
    "progress": {
        "type": arguments.seconds,
        "default": 30.0,
        "metavar": "SECONDS",
        "help": "How often a line tells what runs where the output is no terminal; 0 is never (30).",
    },
    "predict": {
        "type": arguments.seconds,
        "default": 60.0,
        "metavar": "SECONDS",
        "help": "How long to predict, at the end, what could be tried for groups that do not fit; 0 is never (60).",
    },
    "effort": {
        "choices": arguments.EFFORTS,
        "help": "How far a dry run goes on the virtual GPU; full runs every pass whole (normal).",
    },
    "stress": {
        "nargs": "?",
        "const": "64MB",
        "type": resolution,
        "metavar": "SIZE",
        "help": "After a group that fits, take more and more of the GPU until it breaks, and say how much that was, to "
        "within SIZE; write =SIZE (64MB). Some four to ten further runs of the group.",
    },
    "compare-solo": {
        **_FLAG,
        "help": "Run the trainings of every feasible group alone too, and say whether sharing saves time and energy.",
    },
    "executor": {
        "type": where,
        "metavar": "WHERE",
        "help": "Run the groups elsewhere: slurm or slurm:PARTITION, one task with one GPU per group (this machine).",
    },
    "slurm": {
        "default": "",
        "metavar": "OPTIONS",
        "help": "With executor slurm, options of sbatch for every job, such as '--account=lab --time=2:00:00'.",
    },
    "archive": {
        "metavar": "FILE",
        "help": "Append everything that a page needs of the groups to this file, for colocate merge (none).",
    },
    "try-fixes": {
        "nargs": "?",
        "const": "infeasible",
        "choices": ("infeasible", "undecided"),
        "help": "Try what is proposed for groups that do not fit, at the end; =undecided: also for those undecided.",
    },
    "wait": {
        "type": arguments.seconds,
        "default": 0.0,
        "metavar": "SECONDS",
        "help": "How long to wait for a busy GPU (0).",
    },
}


def prefixed(words: list[str]) -> list[str]:
    """The arguments of ``colocate run`` as pytest takes them: our options get their prefix, others stay as they are.

    A value that follows its option as a word of its own is joined to it, since pytest would take it for a file.
    """
    found, left = [], iter(words)
    for word in left:
        name = word[2:].partition("=")[0] if word.startswith("--") else ""
        if name not in OPTIONS:
            found.append(word)
            continue
        takes_next = "=" not in word and not {"nargs", "action"} & set(OPTIONS[name])
        value = next(left, None) if takes_next else None
        found.append(f"{PREFIX}{word[2:]}" + ("" if value is None else f"={value}"))
    return found
