# SPDX-License-Identifier: Apache-2.0
"""``colocate run``: run the groups of a plan, in any folder."""

import argparse
import os
import sys
from pathlib import Path

from colocate.cli import common as command
from colocate.cli.arguments import default_plan
from colocate.cli.run_options import OPTIONS, PREFIX, prefixed

INI = Path(__file__).with_name("templates") / "run.ini"

EPILOG = """\
examples:
  colocate run                                  the twelve groups that colocate brings along
  colocate run plan.json                        every group of a plan of one's own
  colocate run plan.json -k group12             one group
  colocate run plan.json --device=nvidia -n auto    on GPUs, one group per idle GPU
  colocate run plan.json --resume               go on with the last run

Records go to results/ and pages to reports/ in the current folder. Every other
argument goes to pytest. The exit code is pytest's; the last line says why.

options (in pytest itself they begin with --colocate-):
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments; those that pytest knows are not listed here."""
    width = max(map(len, OPTIONS)) + 4
    listed = [f"  --{name:{width}}{settings['help']}" for name, settings in OPTIONS.items()]
    parser = command.new(
        commands,
        run,
        "run",
        "Run the groups of a plan: can these two trainings share one GPU?",
        EPILOG + "\n".join(listed),
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="[PLAN] [OPTIONS and arguments of pytest]", help=argparse.SUPPRESS
    )


def run(options: argparse.Namespace) -> int:
    """Become pytest on the plan, away from the settings and conftests of whatever project is here.

    A process of its own, since pytest wants to load the plugin itself; -P keeps files of this folder, such as a
    ``random.py``, from taking the place of modules.
    """
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "pytest", *pytest_arguments(options.words)])


def pytest_arguments(words: list[str]) -> list[str]:
    """The command line of pytest that runs a plan: the one that is named, else the twelve groups."""
    own = prefixed(words[1:] if words[:1] == ["--"] else words)
    named = [word for word in own[:1] if not word.startswith("-")]
    chosen = any(word.startswith(f"{PREFIX}plan=") for word in own)
    plan = [] if chosen else [f"{PREFIX}plan={named[0] if named else default_plan()}"]
    return ["-p", "colocate.plugin", "-c", str(INI), "--rootdir=.", "--noconftest", *plan, *own[len(named) :]]
