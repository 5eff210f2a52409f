# SPDX-License-Identifier: Apache-2.0
"""``colocate watch``: what a run is doing, from a second terminal, also over a shared file system."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from colocate.cli import common as command
from colocate.errors import ColocateError

if TYPE_CHECKING:
    from colocate.report import Following, Screen

EVERY_S = 1.0
PLAIN_EVERY_S = 30.0


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands,
        run,
        "watch",
        "Show what a run is doing, until it ends: a line per running group, then its outcome.",
        "colocate watch results/run_20261124_053000",
    )
    parser.add_argument(
        "directory", type=Path, nargs="?", metavar="RUN", help="a run directory (the latest in results)"
    )
    parser.add_argument("--once", action="store_true", help="show the state of this moment and end")


def run(options: argparse.Namespace) -> int:
    """Draw until the journal ends; Ctrl-C ends the looking, never the run."""
    from colocate.report import Following, Screen

    directory = options.directory or max(Path("results").glob("run_*"), default=None)
    if directory is None:
        raise ColocateError("results: expected a run directory in it, found none; name one")
    following = Following(directory)
    screen = Screen()
    try:
        _follow(following, screen, once=options.once)
    except KeyboardInterrupt:
        return command.SUCCESS
    finally:
        screen.close()
    return command.SUCCESS


def _follow(following: "Following", screen: "Screen", *, once: bool) -> None:
    reported_t = float("-inf")
    while True:
        for line in following.finished():
            screen.line(line[: screen.width])
        lines, now_t = following.lines(screen.width), time.monotonic()
        if once or following.ended:
            for line in lines:
                screen.line(line)
            return
        screen.draw(lines)
        if not screen.moves and now_t - reported_t >= PLAIN_EVERY_S:
            reported_t = now_t
            for line in lines:
                screen.line(line)
        time.sleep(EVERY_S)
