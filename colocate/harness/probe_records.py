# SPDX-License-Identifier: Apache-2.0
"""Read what the probe inside of trainings records: one file per process, written again and again.

A record may be replaced while it is read, and nothing in it is trusted to be what the probe would write.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from colocate.files import content, line, number, parse, whole
from colocate.harness.training_events import Progress, instant, out_of_memory
from colocate.verdict import Allocator, Coverage, Growth, OutOfMemory, PassCoverage, ProgressEvent, ReasonCode

MOST_LOOPS = 64  # of a program, of which the coverage is told
_MOST_STEPS = 1024  # of a process's history; the probe keeps 256

# Readings of an allocator that are kept of each process: a change of this size, and no more than so many.
_CHANGE_BYTES = 16 * 1024**2
_MOST_READINGS = 1024

# What a record tells as it is: whole numbers, or nothing.
_WHOLE = ("max_allocated_bytes", "max_reserved_bytes", "max_reserved_bound_bytes", "context_bytes", "ooms_raised")
_MAXIMA = ("max_allocated_bytes", "max_reserved_bytes", "num_ooms", "num_alloc_retries", "ooms_raised")

_LARGEST_RECORD_BYTES = 1024**2
_STARTED = "started"  # written by colocate/probe/inject/sitecustomize.py
MOST_RECORDS = 1000  # a training with a thousand processes that use PyTorch


class ProbeReader:
    """Follows the folder in which the probe keeps one record per process; ``since_t`` as for the events.

    ``histories`` has what every process held over time, as its record tells, ``readings`` what it held at the instants
    at which its record was written; ``started`` the processes that have the probe, and ``lost`` what some said of why
    it does not follow them, or no more.
    """

    def __init__(self, folder: Path, since_t: float = 0.0) -> None:
        self._folder = folder
        self._since_t = since_t
        self._versions: dict[str, tuple[int, ...]] = {}
        self._steps: dict[int, int] = {}
        self._ooms: dict[int, OutOfMemory] = {}
        self._allocators: dict[int, Allocator] = {}
        self.histories: dict[int, tuple[tuple[float, int], ...]] = {}
        self.readings: dict[int, list[tuple[float, int]]] = {}
        self.progress = Progress()
        self.trouble: str | None = None
        self.started: frozenset[int] = frozenset()
        self.lost: dict[int, str] = {}
        self._started_bytes = 0

    def poll(self) -> None:
        """Read every record again that has changed."""
        self._read_started()
        for path, version in self._changed():
            try:
                self._take(path, parse(content(path, _LARGEST_RECORD_BYTES)))
                self._versions[path.name] = version
            except (OSError, ValueError, KeyError, TypeError, OverflowError, AttributeError):
                continue  # Not whole yet, or gone: the next record replaces it.

    def _read_started(self) -> None:
        """Take in which processes have the probe by now; a list that is no file, or without end, lists nobody."""
        path = self._folder / _STARTED
        try:
            size = path.lstat().st_size
            if size == self._started_bytes:
                return
            lines = content(path, _LARGEST_RECORD_BYTES).decode(errors="replace").splitlines()
        except (OSError, ValueError):
            return
        self._started_bytes = size
        reported = (one.partition(" ") for one in lines)
        found = {int(pid): why for pid, _, why in reported if pid.isascii() and pid.isdigit()}
        self.started = frozenset(pid for pid, why in found.items() if not why)
        self.lost |= {pid: line(why) or "" for pid, why in found.items() if why}

    def _changed(self) -> Iterator[tuple[Path, tuple[int, ...]]]:
        try:
            entries = [entry for entry in os.scandir(self._folder) if entry.name.endswith(".json")]
        except OSError:
            return
        if len(entries) > MOST_RECORDS:
            self.trouble = f"{self._folder}: expected at most {MOST_RECORDS} records of processes, found {len(entries)}"
        for entry in sorted(entries, key=lambda entry: entry.name)[:MOST_RECORDS]:
            with suppress(OSError):
                status = entry.stat()
                version = (status.st_ino, status.st_mtime_ns, status.st_size)
                if self._versions.get(entry.name) != version:
                    yield self._folder / entry.name, version

    def _take(self, path: Path, record: Mapping[str, Any]) -> None:
        pid, steps = int(record["pid"]), whole(record.get("optimizer_steps")) or 0
        if path.stem != str(pid):
            raise ValueError("a record bears the number of its process")
        allocator = allocator_of(pid, steps, record)
        if record.get("lost"):
            self.lost[pid] = line(record["lost"]) or "it gave up"
        if record.get("num_ooms") and record.get("ooms_raised") != 0:
            last = record.get("last_oom") or {}
            self._ooms[pid] = out_of_memory("probe", number(last.get("t")), last, int(record["num_ooms"]))
        if steps > self._steps.get(pid, 0) and record.get("last_step_t") is not None:
            last_step_s = instant(record["last_step_t"], self._since_t)
            if pid not in self._steps and record.get("first_step_t") is not None:
                first_step_s = instant(record["first_step_t"], self._since_t)
                self.progress.add(ProgressEvent(first_step_s, pid, "optimizer", step=1))
            self.progress.add(ProgressEvent(last_step_s, pid, "optimizer", step=steps))
            self._steps[pid] = steps
        self._allocators[pid] = _with_maxima_of(self._allocators.get(pid), allocator)
        self.histories[pid] = _history(record.get("history"), self._since_t)
        self._read(pid, record)

    def _read(self, pid: int, record: Mapping[str, Any]) -> None:
        """Keep what the allocator holds now; of several readings alike the first and the last."""
        reserved = whole(record.get("reserved_bytes"))
        if reserved is None or record.get("t") is None:
            return
        now, kept = (instant(record["t"], self._since_t), reserved), self.readings.setdefault(pid, [])
        if len(kept) > 1 and all(abs(size - reserved) < _CHANGE_BYTES for _, size in kept[-2:]):
            kept[-1] = (now[0], min(reserved, kept[-1][1]))
        elif len(kept) < _MOST_READINGS and (not kept or kept[-1][0] <= now[0]):
            kept.append(now)

    @property
    def allocators(self) -> tuple[Allocator, ...]:
        """The last record of every process."""
        return tuple(self._allocators.values())

    @property
    def out_of_memory(self) -> tuple[OutOfMemory, ...]:
        """What the allocators counted and the programs were told, also when they went on."""
        return tuple(self._ooms.values())

    @property
    def caught_by_pytorch(self) -> tuple[OutOfMemory, ...]:
        """What the allocators counted and no program was told: PyTorch tried again with less."""
        return tuple(
            OutOfMemory("probe", "PyTorch found no room for a smaller workspace either", one.num_ooms)
            for one in self.allocators
            if one.num_ooms and one.ooms_raised == 0
        )


def _history(value: Any, since_t: float) -> tuple[tuple[float, int], ...]:
    """Read what a process held over time; empty if the probe would not have written such a list."""
    if not isinstance(value, list) or len(value) > _MOST_STEPS:
        return ()
    steps = [(instant(time_t, since_t), whole(size)) for time_t, size in value]
    known = tuple((time_t, size) for time_t, size in steps if size is not None)
    return known if len(known) == len(steps) and list(known) == sorted(known, key=lambda step: step[0]) else ()


def allocator_of(pid: int, steps: int, record: Mapping[str, Any]) -> Allocator:
    """Read what a record tells of a process's allocator."""
    passes_cut = whole(record.get("passes_cut")) or 0
    told: dict[str, Any] = {name: whole(record.get(name)) for name in _WHOLE}
    told |= {name: bool(record.get(name)) for name in ("convolutions", "compiled", "half")}
    return Allocator(
        pid=pid,
        mode="virtual" if record.get("mode") == "virtual" else "cuda",
        torch=line(record.get("torch")),
        optimizer_steps=steps,
        batches_per_pass=whole(record.get("batches_per_pass")),
        **told,
        num_ooms=whole(record.get("num_ooms")) or 0,
        num_alloc_retries=whole(record.get("num_alloc_retries")) or 0,
        context_range_bytes=_pair(record.get("context_range_bytes")),
        certain_reserved_bytes=_certain_bytes(record),
        open_branches=_open_branches(record.get("decisions")),
        sized_by_free=_sized_by_free(record),
        passes_cut=passes_cut,
        notes=tuple(line(note, 300) or "" for note in record.get("notes") or ()),
        unsupported=line(record.get("unsupported")),
        coverage=_coverage(record.get("coverage"), passes_cut),
    )


def _certain_bytes(record: Mapping[str, Any]) -> int | None:
    """Read the peak that is certain, with memory that surely grows; None where it is the whole peak that was seen."""
    coverage = record.get("coverage")
    grown = whole(coverage.get("certain_growth_bytes")) if isinstance(coverage, dict) else None
    certain = whole(record.get("certain_reserved_bytes"))
    if not grown:
        return certain
    seen = whole(record.get("max_reserved_bytes")) if certain is None else certain
    return None if seen is None else seen + grown


def _open_branches(told: Any) -> tuple[str, ...]:
    """Places with an answer that was not given and that leads to work; see `Decisions` of the probe."""
    if not isinstance(told, dict):
        return ()
    return tuple(line(place, 300) or "?" for place, (_, unseen) in told.items() if unseen)[:MOST_LOOPS]


def _sized_by_free(record: Mapping[str, Any]) -> bool:
    """The process asked how much is free, and from then on took at least half of that."""
    names = ("asked_free_bytes", "asked_reserved_bytes", "max_reserved_bytes")
    asked, held, most = (whole(record.get(name)) for name in names)
    return asked is not None and most is not None and 2 * (most - (held or 0)) >= asked


def _coverage(told: Any, passes_cut: int) -> Coverage | None:
    """Read how much of the program was executed, or None if the probe did not say."""
    if not isinstance(told, dict):
        return None
    doubts = [(str(code), line(text, 300) or "") for code, text in told["doubts"] if code in set(ReasonCode)]
    return Coverage(
        loops=tuple(map(_loop, told["loops"][:MOST_LOOPS])),
        passes_cut=passes_cut,
        growth=tuple(map(_growth, told["growth"][:MOST_LOOPS])),
        growth_bytes=whole(told["growth_bytes"]) or 0,
        doubts=tuple(doubts[:MOST_LOOPS]),
        ended_early=bool(told["ended_early"]),
    )


def _loop(told: Mapping[str, Any]) -> PassCoverage:
    passes, run, steps = (whole(told[name]) or 0 for name in ("passes", "batches_run", "steps"))
    place, unit = line(told["place"]) or "?", line(told.get("unit"), 20) or "batches"
    return PassCoverage(place, passes, run, whole(told["batches_whole"]), steps, unit)


def _growth(told: Mapping[str, Any]) -> Growth:
    a_step, seen = (whole(told[name]) or 0 for name in ("bytes_per_step", "steps_seen"))
    return Growth(line(told["place"]), a_step, seen, whole(told["steps_left"]))


def _with_maxima_of(earlier: Allocator | None, latest: Allocator) -> Allocator:
    """Keep each maximum, whatever a later record says."""
    if earlier is None:
        return latest
    both = {name: (getattr(earlier, name), getattr(latest, name)) for name in _MAXIMA}
    maxima: dict[str, Any] = {
        name: max((one for one in two if one is not None), default=None) for name, two in both.items()
    }
    return replace(latest, **maxima)


def _pair(value: Any) -> tuple[int, int] | None:
    low, high = map(whole, value) if isinstance(value, list) and len(value) == 2 else (None, None)
    return None if low is None or high is None else (low, high)
