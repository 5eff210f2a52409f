"""The ``colocate`` command: everything around a run that needs no pytest."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence

from colocate import __version__
from colocate.cli import (
    calibrate,
    compare,
    doctor,
    fit,
    follow_up,
    merge,
    pack,
    pairs,
    predict,
    report,
    speedup,
    verify,
    watch,
)
from colocate.cli.common import WRONG_INPUT
from colocate.errors import ColocateError

COMMANDS = (doctor, predict, pairs, pack, fit, watch, report, merge, compare, follow_up, speedup, verify, calibrate)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0 well, 1 a finding, 2 input that cannot be used."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ColocateError as error:
        print(f"colocate: {error}", file=sys.stderr)
        return WRONG_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="colocate", description="Everything around a run that needs no pytest.")
    parser.add_argument("--version", action="version", version=f"colocate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
