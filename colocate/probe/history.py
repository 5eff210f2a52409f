# SPDX-License-Identifier: Apache-2.0
"""Record what a process held over time as steps that are nowhere below the truth.

Standard library only. Between two readings memory may come and go; how much all growth was together tells how high it
can have been meanwhile.
"""

from __future__ import annotations

from typing import Any, Mapping  # noqa: UP035  this module runs on Python 3.8

MOST_STEPS = 256  # some kilobytes in the record, which is written as a whole


class History:
    """Steps ``(monotonic seconds, bytes)``: from then on the process held at most so many, until the next step."""

    def __init__(self, most: int = MOST_STEPS, since_t: float | None = None) -> None:
        """Add what was held since ``since_t``; None is the first reading."""
        self.steps: list[tuple[float, int]] = []
        self._most = most
        self._read_t = since_t
        self._reserved = self._grown = 0

    def add(self, read_t: float, readings: Mapping[str, Any], done_t: float | None = None) -> None:
        """Take a reading of the allocator, begun at ``read_t`` and over at ``done_t``; one without numbers is left out.

        Without the growth, or after a program has set it back, the lifetime's maximum stands for what happened since
        the last reading. So it does where the growth is less than that maximum, as with an allocator that does not
        count it (``backend:cudaMallocAsync`` tells 0).
        """
        done_t = read_t if done_t is None else done_t
        reserved, highest = readings.get("reserved_bytes"), readings.get("max_reserved_bytes")
        if reserved is None or highest is None:
            self._read_t = read_t
            return
        grown = readings.get("reserved_grown_bytes")
        between = highest
        if grown is not None and grown >= max(self._grown, highest):
            between = min(highest, self._reserved + grown - self._grown)
        since_t = read_t if self._read_t is None else self._read_t
        if between > max(reserved, self._reserved):
            self._append(since_t, between)
            self._append(done_t, reserved)
        else:
            self._append(since_t if reserved > self._reserved else done_t, reserved)
        self._read_t, self._reserved, self._grown = read_t, reserved, grown or 0

    def _append(self, time_t: float, num_bytes: int) -> None:
        steps = [*self.steps]  # never in place: the record compares what it has written with what it has now
        if steps and steps[-1][0] >= time_t:
            last_t, last = steps.pop()
            num_bytes = max(num_bytes, last)
            if steps and steps[-1][1] >= num_bytes:
                time_t = last_t  # until then more was told already
        if not steps or steps[-1][1] != num_bytes:
            steps.append((time_t, num_bytes))
        self.steps = self._bounded(steps)

    def _bounded(self, steps: list[tuple[float, int]]) -> list[tuple[float, int]]:
        """Half as many where there are too many: neighbours become one with the larger size; the last one stays."""
        if len(steps) <= self._most:
            return steps
        *earlier, last = steps
        pairs = zip(earlier[::2], [*earlier[1::2], earlier[-1]])  # noqa: B905  no `strict` before Python 3.10
        return [*((first[0], max(first[1], second[1])) for first, second in pairs), last]
