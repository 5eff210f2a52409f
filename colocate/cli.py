"""The ``colocate`` command: what can be said without running anything."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from colocate import __version__
from colocate.errors import ColocateError

EXIT_DISAGREES = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit code: 0 well, 1 a finding, 2 input that cannot be used."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except ColocateError as error:
        print(f"colocate: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="colocate", description=__doc__)
    parser.add_argument("--version", action="version", version=f"colocate {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_verify(commands)
    return parser


def _add_verify(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "verify",
        help="judge recorded groups again",
        description="Judge recorded groups again from what is on disk; needs no GPU.",
        epilog="example: colocate verify results/run_20261124_053000",
    )
    command.add_argument("directory", type=Path, nargs="+", help="a run directory, or the folder of one group in it")
    command.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from colocate.verification import verify

    lines = [line for directory in options.directory for line in verify(directory)]
    for line in lines:
        print(line)
    return 0 if all(line.agrees for line in lines) else EXIT_DISAGREES


if __name__ == "__main__":
    sys.exit(main())
