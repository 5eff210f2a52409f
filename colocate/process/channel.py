# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of its conversation with the harness: JSON lines on two pipes. Standard library only."""

import json
import os
import select
import time
from typing import Any

_TICK_S = 0.5
_WAITING_BYTES = 256 * 1024


class Channel:
    """JSON lines to and from the harness. Never blocks: a harness that does not listen must not hold up a training."""

    def __init__(self, orders: int, events: int) -> None:
        self.closed = False
        self._orders = orders
        self._events = events
        self._harness = os.getppid()
        self._arrived = b""
        self._waiting = bytearray()
        os.set_blocking(orders, False)
        os.set_blocking(events, False)

    def register(self, poller: select.poll) -> None:
        """Wake the poller for orders, and for room when events wait to be sent."""
        if not self.closed:
            poller.register(self._orders, select.POLLIN)
            poller.register(self._events, select.POLLOUT if self._waiting else 0)

    def receive(self) -> dict[str, Any] | None:
        """The next order, None when none has arrived. Sets ``closed`` when the harness is gone.

        That is at the end of the file, or when it is no more our parent: a process that was forked off the harness may
        hold our input open beyond its death.
        """
        try:
            while data := os.read(self._orders, 1 << 16):
                self._arrived += data
            self.closed = True
        except BlockingIOError:
            self.closed = self.closed or os.getppid() != self._harness
        line, end, rest = self._arrived.partition(b"\n")
        if not end:
            return None
        self._arrived = rest
        order: dict[str, Any] = json.loads(line)
        return order

    def wait_for_order(self, timeout_s: float = float("inf")) -> dict[str, Any] | None:
        """The next order as soon as there is one; None when the harness has gone or the time is over."""
        deadline = time.monotonic() + timeout_s
        while (order := self.receive()) is None and not self.closed and time.monotonic() < deadline:
            self.flush()
            poller = select.poll()
            self.register(poller)
            poller.poll(_TICK_S * 1000)
        return order

    def send(self, event: str, *, optional: bool = False, **fields: Any) -> None:
        """Send an event as soon as there is room; an optional one is dropped when too many wait already."""
        if not (optional and len(self._waiting) > _WAITING_BYTES):
            # The empty line in front ends whatever an interrupted harness may have lost half of.
            self._waiting += b"\n%s\n" % json.dumps({"event": event, **fields}).encode()
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        try:
            while self._waiting and not self.closed:
                del self._waiting[: os.write(self._events, self._waiting)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.closed = True
