# SPDX-License-Identifier: Apache-2.0
"""``colocate doctor``: what is here, what works, what does not and how to mend it."""

import argparse
from pathlib import Path

from colocate.cli import common as command


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        "doctor",
        "Look at this machine: what is here, what works, what does not and how to mend it.",
        "colocate doctor",
    )
    parser.add_argument("--plan", type=Path, metavar="FILE", help="plan to look at (that of the settings folder)")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="where runs go (results)")
    parser.add_argument("--quick", action="store_true", help="leave out the trial of the virtual GPU")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print every finding; the check fails only where no run is possible."""
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
