# SPDX-License-Identifier: Apache-2.0
"""A run that is asked to end ends cleanly on the first SIGINT, SIGTERM or SIGHUP, and at once on the second.

Without this, SIGTERM would leave the trainings to their supervisors and the reports unwritten, and a run that a script
started with ``&`` would ignore SIGINT.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import pytest

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """The handlers of both signals, from `install` to `restore`.

    ``kill`` is called on the second signal just before the process ends, without cleaning up. A worker has no second
    signal: Ctrl-C reaches it from the terminal and from its controller, and its controller kills it where needed.
    """

    def __init__(self, kill: Callable[[], None] | None) -> None:
        self._kill = kill
        self._old: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None
        self.ending = False

    @property
    def exit_code(self) -> int | None:
        """Return a shell's exit code for an interrupted program: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return None if self.received is None else 128 + self.received

    def install(self) -> None:
        """Take the signals over; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            # Under nohup the end of the terminal is nothing to us.
            wanted = [one for one in _SIGNALS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
            self._old = {number: signal.signal(number, self._handle) for number in wanted}

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._old = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signal.Signals(number)
        if first and not self.ending:
            raise KeyboardInterrupt(self.received.name)
        if not first and self._kill is not None:
            self._kill()
            os._exit(128 + number)


class OneWorkerEnds:
    """Lets a worker that is told to end by SIGTERM die of it, once its group is ended and recorded.

    xdist takes a worker that finishes early for a Ctrl-C of the whole session; one that dies is replaced.
    """

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Called after the fixtures were ended and before xdist tells the controller that the worker has finished."""
        if self._interruption.received == signal.SIGTERM:
            os._exit(128 + signal.SIGTERM)


@contextmanager
def skippable() -> Iterator[None]:
    """SIGINT and SIGTERM end what is predicted and not the session, which has its page still to write.

    At this time the session's own handler waits for a second signal, which would end it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def skip(number: int, frame: FrameType | None) -> NoReturn:
        own = before[signal.Signals(number)]
        if number == signal.SIGTERM and callable(own):
            own(number, frame)  # the exit code tells of it
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, skip)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
