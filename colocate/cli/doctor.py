# SPDX-License-Identifier: Apache-2.0
"""``colocate doctor``: what is here, what works, what does not and how to mend it."""

import argparse
from pathlib import Path

from colocate.cli import common as command
from colocate.cli.arguments import size
from colocate.errors import ColocateError
from colocate.units import format_mib


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        run,
        "doctor",
        "Look at this machine: what is here, what works, what does not and how to mend it.",
        "colocate doctor",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="plan to look at (that of the settings folder)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where runs go (results)")
    parser.add_argument("--quick", action="store_true", help="leave out the trial of the virtual GPU")
    parser.add_argument(
        "--context",
        metavar="SIZE",
        type=size,
        help="what nvidia-smi shows for a process that has put one number on the GPU, as 431MB: predictions for the "
        "--gpu count with it from now on",
    )
    parser.add_argument("--gpu", metavar="NAME", help="the GPU of --context, a name of settings/gpu_models.json")


def run(options: argparse.Namespace) -> int:
    """Print every finding; the check fails only where no run is possible. With a reading, keep that and no more."""
    if options.context is not None or options.gpu is not None:
        return _keep_reading(options.gpu, options.context)
    from colocate.cli.diagnostics import examine, verdict_of

    findings = []
    for finding in examine(options.plan, options.results, quick=options.quick):
        findings.append(finding)
        print(f"{finding.state:8}{finding.about}: {finding.text}")
        if finding.cure:
            print(f"        -> {finding.cure}")
    worst_case, text = verdict_of(findings)
    print(text)
    return command.SUCCESS if worst_case else command.CHECK_FAILED


def _keep_reading(gpu: str | None, context_bytes: int | None) -> int:
    """Put one reading of a GPU's context into the user's own table."""
    from colocate.plan import CONTEXT_COMMAND, keep_row, read_row

    if gpu is None or context_bytes is None:
        raise ColocateError(
            f"doctor: expected --gpu and --context together; read the context beside: {CONTEXT_COMMAND}"
        )
    row = read_row(gpu, context_bytes)
    print(f"{keep_row(row)}: {row.name} has a context of {format_mib(row.context.expected)}")
    return command.SUCCESS
