# SPDX-License-Identifier: Apache-2.0
"""A run that is asked to end ends cleanly on the first SIGINT, SIGTERM or SIGHUP, and at once on the second.

Without this, SIGTERM would leave the trainings to their supervisors and the reports unwritten, and a run that a script
started with ``&`` would ignore SIGINT.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """The handlers of these signals, from `install` to `restore`.

    ``kill`` is called on the second signal just before the process ends, without cleaning up. A worker has no second
    signal: Ctrl-C reaches it from the terminal and from its controller, and its controller kills it where needed.
    """

    def __init__(self) -> None:
        self.kill: Callable[[], None] | None = None
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

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A signal ends what is begun inside although the session is ending; after Ctrl-C the session goes on."""
        self.ending = False
        try:
            yield
        finally:
            self.ending = True
            self.received = None if self.received == signal.SIGINT else self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signal.Signals(number)
        if first and not self.ending:
            raise KeyboardInterrupt(self.received.name)
        if not first and self.kill is not None:
            self.kill()
            os._exit(128 + number)


_INTERRUPTION = pytest.StashKey[Interruption]()


def interruption_of(config: pytest.Config) -> Interruption:
    """The handlers of this process."""
    return config.stash.setdefault(_INTERRUPTION, Interruption())


# In a worker. xdist takes one that finishes early for a Ctrl-C of the whole session; one that dies is replaced.


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Take the signals over."""
    interruption_of(session.config).install()


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Interrupt nothing that ends anyway; die of a SIGTERM once the fixtures have ended and recorded the group.

    The innermost wrapper, so that this is before xdist tells the controller that the worker has finished.
    """
    interruption = interruption_of(session.config)
    interruption.ending = True
    yield
    if interruption.received == signal.SIGTERM:
        os._exit(128 + signal.SIGTERM)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the signals back."""
    interruption_of(config).restore()
