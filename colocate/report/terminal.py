# SPDX-License-Identifier: Apache-2.0
"""A few lines at the bottom of a terminal that change, and plain lines where the output is no terminal.

Whoever else writes to the same terminal does it through `Through`, which takes the changing lines away first: nothing
half-written is ever mixed in. Knows nothing of runs.
"""

import atexit
import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from typing import Any, TextIO

_UP_AND_CLEAR = "\x1b[1A\x1b[2K"


class Screen:
    """The changing lines. Writes to a descriptor of its own, so that capturing standard output does not swallow it.

    Args:
        descriptor: Where to write; duplicated.
        environment: Where ``TERM`` and ``COLUMNS`` are read.
    """

    def __init__(self, descriptor: int = 1, environment: Any = os.environ) -> None:
        self._descriptor = os.dup(descriptor)
        self._environment = environment
        self.lock = threading.RLock()
        self.moves = os.isatty(self._descriptor) and environment.get("TERM") not in (None, "", "dumb")
        self.at_line_start = True
        self._shown = 0

    @property
    def width(self) -> int:
        """Columns that a line may have; one less than there are, for some terminals wrap at the last one."""
        try:
            columns = int(self._environment.get("COLUMNS") or os.get_terminal_size(self._descriptor).columns)
        except (OSError, ValueError):
            columns = 0
        columns = columns or shutil.get_terminal_size().columns  # a terminal may not know, and say 0
        return max(20, columns - 1)

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines in place of the last ones."""
        with self.lock:
            if not self.moves:
                return
            parts = [self._clearing()]
            if not self.at_line_start:
                parts.append("\n")
                self.at_line_start = True
            parts.append("\n".join(line[: self.width] for line in lines))
            self._shown = len(lines)
            self._write("".join(parts))

    def clear(self) -> None:
        """Take the changing lines away."""
        with self.lock:
            if self._shown:
                self._write(self._clearing())
                self._shown = 0

    def line(self, text: str) -> None:
        """Write a line that stays."""
        with self.lock:
            self.clear()
            self._write(("" if self.at_line_start else "\n") + text + "\n")
            self.at_line_start = True

    def close(self) -> None:
        """Take the lines away and let go of the terminal."""
        self.clear()
        os.close(self._descriptor)

    def _clearing(self) -> str:
        return "\r\x1b[2K" + _UP_AND_CLEAR * (self._shown - 1) if self._shown else ""

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", errors="replace")
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:
                return  # the terminal is gone; the run is not


class Lasting:
    """A text stream that outlives its reader: what a closed pipe or a full disk refuses is left out from then on."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.lost: str | None = None

    def write(self, text: str) -> int:
        """Write, unless nobody can be written to any more."""
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, under the same condition."""
        self._try(self.stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self.lost is not None:
            return
        try:
            act()
        except (OSError, ValueError) as error:
            self.lost = str(error)
            # Else Python would fail over what is left in the buffer when it ends, and turn the exit code into 120.
            atexit.register(_forget, self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _forget(stream: TextIO) -> None:
    """Let whatever is still written to a stream go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Through:
    """A text stream that takes the changing lines of a screen away before anything is written to it."""

    def __init__(self, stream: TextIO, screen: Screen) -> None:
        self.stream = stream
        self._screen = screen

    def write(self, text: str) -> int:
        """Write what somebody else has to say."""
        with self._screen.lock:
            self._screen.clear()
            written = self.stream.write(text)
            self.stream.flush()
            if text:
                self._screen.at_line_start = text.endswith(("\n", "\r"))
            return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
