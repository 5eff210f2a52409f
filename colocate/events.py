"""Reads what trainings tell: events that they write themselves, and the records of the probe inside them.

Both are files that another process is writing at this moment, so a torn last line is read again later and a line that
is no event is counted and left out. Times are monotonic seconds here; `colocate.observation` makes them relative.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colocate.evidence import STEP_KINDS, Allocator, Epoch, Mark, OutOfMemory

# Two signs of progress a second are enough to prove overlap, and keep the record of a long run small.
_MARK_EVERY_S = 0.5


class Progress:
    """Signs of progress in order; of many steps in a row it keeps the first, the last and two a second."""

    def __init__(self) -> None:
        self.longest_pause_s = 0.0
        self._by_pid: dict[int, list[Mark]] = {}

    def add(self, mark: Mark) -> None:
        """Take one more sign of progress of its process."""
        marks = self._by_pid.setdefault(mark.pid, [])
        if marks:
            self.longest_pause_s = max(self.longest_pause_s, mark.elapsed_s - marks[-1].elapsed_s)
        if len(marks) > 1 and all(_close(mark, other) for other in marks[-2:]):
            marks[-1] = mark
        else:
            marks.append(mark)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """All kept signs, by time."""
        return tuple(sorted((mark for marks in self._by_pid.values() for mark in marks), key=lambda m: m.elapsed_s))

    @property
    def latest_s(self) -> float | None:
        """When the last sign came."""
        return max((marks[-1].elapsed_s for marks in self._by_pid.values()), default=None)


class EventReader:
    """Follows one events file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self.progress = Progress()
        self.epochs: list[Epoch] = []
        self.out_of_memory: list[OutOfMemory] = []
        self.data: str | None = None
        self.bad_lines = 0
        self.num_steps = 0

    def poll(self) -> None:
        """Read what was appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                chunk = file.read()
        except FileNotFoundError:
            return
        whole, newline, _ = chunk.rpartition(b"\n")
        self._position += len(whole) + len(newline)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            time_s, pid, kind = float(event["t"]), int(event["pid"]), str(event["event"])
            if not math.isfinite(time_s):
                raise ValueError("the time of an event is a finite number")
            self._record(time_s, pid, kind, event)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            self.bad_lines += 1

    def _record(self, time_s: float, pid: int, kind: str, event: Mapping[str, Any]) -> None:
        if kind == "epoch_end":
            self.epochs.append(_epoch(time_s, event))
        elif kind == "end" and event.get("exit") == "out_of_memory":
            self.out_of_memory.append(_out_of_memory("event", time_s, event))
        elif kind == "ready":
            self.data = _text(event.get("data"))
        self.num_steps += kind == "step"
        self.progress.add(Mark(time_s, pid, kind, _text(event.get("phase")), _whole(event.get("step"))))


class ProbeReader:
    """Follows the folder in which the probe keeps one record per process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: dict[int, int] = {}
        self._ooms: dict[int, OutOfMemory] = {}
        self._allocators: dict[int, Allocator] = {}
        self.progress = Progress()

    def poll(self) -> None:
        """Read every record again that is there."""
        for path in self._folder.glob("*.json"):
            try:
                self._take(json.loads(path.read_bytes()))
            except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue  # Not whole yet, or gone: the next record replaces it.

    def _take(self, record: Mapping[str, Any]) -> None:
        pid, steps = int(record["pid"]), _whole(record.get("optimizer_steps")) or 0
        self._allocators[pid] = _allocator(pid, steps, record)
        last_step_s = record.get("last_step_t")
        if steps > self._steps.get(pid, 0) and last_step_s is not None:
            first_step_s = record.get("first_step_t")
            if pid not in self._steps and first_step_s is not None:
                self.progress.add(Mark(float(first_step_s), pid, "optimizer", step=1))
            self.progress.add(Mark(float(last_step_s), pid, "optimizer", step=steps))
            self._steps[pid] = steps
        if record.get("num_ooms"):
            self._ooms[pid] = _probe_out_of_memory(int(record["num_ooms"]), record.get("last_oom") or {})

    @property
    def allocators(self) -> tuple[Allocator, ...]:
        """The last record of every process."""
        return tuple(self._allocators.values())

    @property
    def out_of_memory(self) -> tuple[OutOfMemory, ...]:
        """What the allocators counted, also when the program went on."""
        return tuple(self._ooms.values())


def _close(mark: Mark, earlier: Mark) -> bool:
    same = mark.kind in STEP_KINDS and (mark.kind, mark.phase) == (earlier.kind, earlier.phase)
    return same and mark.elapsed_s - earlier.elapsed_s < _MARK_EVERY_S


def _epoch(time_s: float, event: Mapping[str, Any]) -> Epoch:
    metrics = {str(name): float(value) for name, value in dict(event.get("metrics") or {}).items()}
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    rate = event.get("samples_per_s")
    steps, full = int(event["steps"]), int(event["steps_full"])
    cut = bool(event["cut"]) or steps < full
    return Epoch(time_s, int(event["epoch"]), steps, full, cut, finite, None if rate is None else float(rate))


def _out_of_memory(source: Any, time_s: float, event: Mapping[str, Any]) -> OutOfMemory:
    return OutOfMemory(
        source=source,
        message=str(event.get("message") or "out of memory")[:500],
        elapsed_s=time_s,
        requested_bytes=_whole(event.get("requested_bytes")),
        reserved_bytes=_whole(event.get("reserved_bytes")),
    )


def _probe_out_of_memory(count: int, last: Mapping[str, Any]) -> OutOfMemory:
    return OutOfMemory(
        source="probe",
        message=str(last.get("message") or "out of memory")[:500],
        count=count,
        elapsed_s=None if last.get("t") is None else float(last["t"]),
        requested_bytes=_whole(last.get("requested_bytes")),
        reserved_bytes=_whole(last.get("reserved_bytes")),
    )


def _allocator(pid: int, steps: int, record: Mapping[str, Any]) -> Allocator:
    return Allocator(
        pid=pid,
        mode="virtual" if record.get("mode") == "virtual" else "cuda",
        torch=_text(record.get("torch")),
        optimizer_steps=steps,
        max_allocated_bytes=_whole(record.get("max_allocated_bytes")),
        max_reserved_bytes=_whole(record.get("max_reserved_bytes")),
        num_ooms=_whole(record.get("num_ooms")) or 0,
        num_alloc_retries=_whole(record.get("num_alloc_retries")) or 0,
        context_bytes=_whole(record.get("context_bytes")),
        context_range_bytes=_pair(record.get("context_range_bytes")),
        max_reserved_bound_bytes=_whole(record.get("max_reserved_bound_bytes")),
        convolutions=bool(record.get("convolutions")),
        batches_per_pass=_whole(record.get("batches_per_pass")),
        passes_cut=_whole(record.get("passes_cut")) or 0,
        notes=tuple(str(note)[:300] for note in record.get("notes") or ()),
        unsupported=_text(record.get("unsupported")),
    )


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _pair(value: Any) -> tuple[int, int] | None:
    low, high = map(_whole, value) if isinstance(value, list) and len(value) == 2 else (None, None)
    return None if low is None or high is None else (low, high)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)[:500]
