# SPDX-License-Identifier: Apache-2.0
"""Show the progress of dry runs on standard error while a command waits for them."""

import os
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from colocate.harness import Program


def short(name: str, width: int) -> str:
    """The end of a name tells trainings of one repository apart."""
    return name if len(name) <= width else "~" + name[len(name) - width + 1 :]


class Progress:
    """Shows one live line on a terminal, and a line per finished training elsewhere."""

    def __init__(self, number: int, stream: TextIO) -> None:
        self._number = number
        self._stream = stream
        self._live = stream.isatty()
        self._done = 0
        self._running: dict[str, float] = {}
        self._shown_t = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._live and self._number:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def tell(self, program: "Program", stage: str, elapsed_s: float) -> None:
        """Take in what happened to a program."""
        if stage == "done":
            self._done += 1
            self._running.pop(program.name, None)
            if not self._live:
                print(f"[{self._done}/{self._number}] {program.name}: {elapsed_s:.0f} s", file=self._stream, flush=True)
        else:
            self._running[program.name] = elapsed_s
        if self._live and (stage == "done" or time.monotonic() - self._shown_t > 0.2):
            self._shown_t = time.monotonic()
            names = ", ".join(f"{short(name, 24)} {seconds:.0f} s" for name, seconds in self._running.items())
            width = os.get_terminal_size(self._stream.fileno()).columns
            self._stream.write(f"\r\033[K{f'[{self._done}/{self._number}] {names}'[: width - 1]}")
            self._stream.flush()
