# SPDX-License-Identifier: Apache-2.0
"""The ``colocate`` command: run a plan, and everything around a run."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from colocate import __version__
from colocate.cli import compare, doctor, fit, follow_up, init, merge, pack, pairs, predict, report, run, verify, watch
from colocate.cli.common import SUCCESS, WRONG_INPUT
from colocate.errors import ColocateError
from colocate.files import open_closed_streams

EPILOG = """\
to begin with:
  colocate init "python train.py" "python other.py"    write a plan for two trainings of your own
  colocate run plan.json                               run it: on a GPU, or predicted without one
  colocate doctor                                      what this machine can do

Each command shows an example with --help.
"""

COMMANDS = (run, init, doctor, predict, pairs, pack, fit, watch, report, merge, compare, follow_up, verify)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns its exit code. Without one, show what there is."""
    open_closed_streams()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words:
        _parser().print_help()
        return SUCCESS
    if words[0] == "run" and words[1:2] not in (["-h"], ["--help"]):
        words[1:1] = ["--"]  # what follows is for pytest, options too
    options = _parser().parse_args(words)
    perform: Callable[[argparse.Namespace], int] = options.run
    try:
        code = perform(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ColocateError as error:
        print(f"colocate: {error}", file=sys.stderr)
        return WRONG_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="colocate",
        description="Can these two deep-learning trainings share one GPU?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"colocate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
