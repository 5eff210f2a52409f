# SPDX-License-Identifier: Apache-2.0
"""Reads what trainings tell: events that they write themselves, and the records of the probe inside them.

Both are files that another process is writing at this moment, so a torn last line is read again later and a line that
is no event is counted and left out. Nothing that a training puts there may hold up the harness or fill its memory.
Times are monotonic seconds here; `colocate.harness.group_run` makes them relative.
"""

import os
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from colocate.files import line, number, opened, parse, whole
from colocate.verdict import STEP_KINDS, Epoch, OutOfMemory, ProgressEvent

# Two signs of progress a second are enough to prove overlap, and keep the record of a long run small.
_PROGRESS_EVERY_S = 0.5

# Ten steps a second for a day are 130 MB, of which 170,000 signs of progress are kept.
MOST_BYTES = 256 * 1024**2
MOST_PROGRESS_EVENTS = 200_000
_AT_ONCE_BYTES = 256 * 1024  # per look, twenty times a second: reading a flood takes no more than a few per cent
_LONGEST_LINE_BYTES = 64 * 1024

# How far the clocks of two processors of one machine may be apart.
_CLOCK_S = 1.0


class Progress:
    """Signs of progress in order; of many steps in a row it keeps the first, the last and two a second."""

    def __init__(self) -> None:
        self.longest_pause_s = 0.0
        self.overflowed = False
        self._by_pid: dict[int, list[ProgressEvent]] = {}
        self._num_kept = 0

    def add(self, event: ProgressEvent) -> None:
        """Take one more sign of progress of its process."""
        kept = self._by_pid.setdefault(event.pid, [])
        if kept:
            self.longest_pause_s = max(self.longest_pause_s, event.elapsed_s - kept[-1].elapsed_s)
        if len(kept) > 1 and all(_close(event, other) for other in kept[-2:]):
            kept[-1] = event
        elif self._num_kept < MOST_PROGRESS_EVENTS:
            kept.append(event)
            self._num_kept += 1
        else:
            self.overflowed = True

    @property
    def progress_events(self) -> tuple[ProgressEvent, ...]:
        """Return all stored progress events by time."""
        return tuple(sorted(chain.from_iterable(self._by_pid.values()), key=lambda event: event.elapsed_s))

    @property
    def latest_s(self) -> float | None:
        """Return when the last progress event came."""
        return max((events[-1].elapsed_s for events in self._by_pid.values()), default=None)


class EventReader:
    """Follows one events file.

    Args:
        path: The file, which need not be there yet.
        since_t: Before this instant nothing can have happened; what is told of such a time is no event.
    """

    def __init__(self, path: Path, since_t: float = 0.0) -> None:
        self._path = path
        self._since_t = since_t
        self._position = self._num_bytes = 0
        self._inode: int | None = None
        self._skipping = False
        self.progress = Progress()
        self.epochs: list[Epoch] = []
        self.out_of_memory: list[OutOfMemory] = []
        self.data: str | None = None
        self.bad_lines = 0
        self.num_steps = 0
        self.trouble: str | None = None

    def poll(self) -> bool:
        """Read a piece of what was appended since the last call; whether there may be more of it."""
        if self.trouble is not None:
            return False
        try:
            piece = self._read()
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            self.trouble = f"{self._path}: expected the events of a training, got {error}"
            return False
        before = self._position
        for text in self._whole_lines(piece):
            self._take(text)
        self._num_bytes += self._position - before
        if self._num_bytes > MOST_BYTES or self.progress.overflowed:
            self.trouble = f"{self._path}: expected some events, found more than anybody can judge by"
        return len(piece) == _AT_ONCE_BYTES

    def finish(self) -> None:
        """Read all that is there."""
        while self.poll():
            pass

    def _read(self) -> bytes:
        handle = opened(self._path)
        try:
            status = os.fstat(handle)
            if status.st_ino != self._inode or status.st_size < self._position:  # begun anew by a later process run
                self._inode, self._position, self._skipping = status.st_ino, 0, False
            return os.pread(handle, _AT_ONCE_BYTES, self._position)
        finally:
            os.close(handle)

    def _whole_lines(self, piece: bytes) -> Iterator[bytes]:
        """Whole lines; of one that does not end the rest is passed over."""
        text, newline, rest = piece.rpartition(b"\n")
        self._position += len(text) + len(newline)
        lines = text.split(b"\n") if newline else []
        if self._skipping and newline:
            self._skipping = False
            lines = lines[1:]
        if len(rest) > _LONGEST_LINE_BYTES:
            self.bad_lines += not self._skipping
            self._position += len(rest)
            self._skipping = True
        return (one for one in lines if one.strip())

    def _take(self, text: bytes) -> None:
        try:
            event = parse(text)
            time_s, pid, kind = instant(event["t"], self._since_t), int(event["pid"]), str(event["event"])[:40]
            self._record(time_s, pid, kind, event)
        except (ValueError, KeyError, TypeError, OverflowError):
            self.bad_lines += 1

    def _record(self, time_s: float, pid: int, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "epoch_end":
            self.epochs.append(_epoch(time_s, event))
        elif kind == "end" and event.get("exit") == "out_of_memory":
            self.out_of_memory.append(out_of_memory("event", time_s, event))
        elif kind == "ready":
            self.data = line(event.get("data"))
        self.num_steps += kind == "step"
        self.progress.add(ProgressEvent(time_s, pid, kind, line(event.get("phase")), whole(event.get("step"))))


def _close(event: ProgressEvent, earlier: ProgressEvent) -> bool:
    same = event.kind in STEP_KINDS and (event.kind, event.phase) == (earlier.kind, earlier.phase)
    return same and event.elapsed_s - earlier.elapsed_s < _PROGRESS_EVERY_S


def instant(value: Any, since_t: float) -> float:
    """A time of the monotonic clock between the beginning and now: another clock tells nothing that can be compared."""
    time_t = number(value)
    if time_t is None or not since_t - _CLOCK_S <= time_t <= time.monotonic() + _CLOCK_S:
        raise ValueError(f"expected a time of this run, got {value!r:.80}")
    return time_t


def _epoch(time_s: float, event: Mapping[str, Any]) -> Epoch:
    told = event.get("metrics")
    known = ((line(name) or "", number(value)) for name, value in (told.items() if isinstance(told, dict) else ()))
    metrics = {name: value for name, value in known if value is not None}
    place, steps, full = (whole(event[name]) for name in ("epoch", "steps", "steps_full"))
    if place is None or steps is None or full is None:
        raise ValueError("an epoch is counted in whole numbers")
    cut = bool(event["cut"]) or steps < full
    samples = number(event.get("samples_per_s")), whole(event.get("samples"))
    return Epoch(time_s, place, steps, full, cut, metrics, *samples)


def out_of_memory(
    source: Literal["event", "probe"], time_s: float | None, told: Mapping[str, Any], count: int = 1
) -> OutOfMemory:
    """An out-of-memory that a training, or the probe in it, has told of."""
    message = line(told.get("message")) or "out of memory"
    return OutOfMemory(
        source, message, count, time_s, whole(told.get("requested_bytes")), whole(told.get("reserved_bytes"))
    )
