"""The subcommands of ``colocate``, one module each.

A module has ``add(commands)``, which declares its arguments and sets ``run``, a function from the parsed options to an
exit code: 0 well, 1 a finding, 2 input that cannot be used, 3 undecided. What it needs it imports when it runs, so that
``--help`` is quick.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from colocate.errors import ColocateError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
WELL, FINDING, USAGE, UNDECIDED = 0, 1, 2, 3


def new(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Declare a subcommand; ``example`` is shown below its arguments in ``--help``."""
    return commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")


def near(path: Path) -> str:
    """A path as one would type it from here."""
    return os.path.relpath(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into an error of one line.

    Raises:
        ColocateError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ColocateError(f"{near(path)}: expected to be written, got {error.strerror or error}") from error


def latest_run() -> Path:
    """The latest run directory below ``results``.

    Raises:
        ColocateError: there is none.
    """
    found = max(Path("results").glob("run_*"), key=lambda path: path.name, default=None)
    if found is None:
        raise ColocateError("results: expected a run directory in it, found none; name one")
    return found


def size(text: str) -> int:
    """Bytes of ``200MB``.

    Raises:
        argparse.ArgumentTypeError: the text is no size.
    """
    from colocate.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)
