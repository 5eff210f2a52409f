# SPDX-License-Identifier: Apache-2.0
"""Follow one training of a group while it runs: its processes, output and events, gathered into a `Member`.

Knows no GPU: which member holds memory there is told by `colocate.harness.group_run`.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal

from colocate.harness.environment import PROBE
from colocate.harness.probe_records import ProbeReader
from colocate.harness.training_events import EventReader, Progress
from colocate.plan import Role, Training
from colocate.process import Process, describe, has_own_numbers, out_of_memory, variable_of
from colocate.results import GroupDirectory
from colocate.verdict import (
    Allocator,
    Member,
    MemoryWords,
    OutOfMemory,
    ProcessPeak,
    ProcessRun,
    ProgressEvent,
    at_least,
    by_allocators,
    by_lists,
    counted_none,
    weight,
)

LAST_LINES = 20
_PROGRESS = "progress"
_TRACEBACK = "traceback"
_METRIC = "metric:"
_PROBE_LOST = "probe_lost"

WHY_MISSING = (
    "as below python -I, -E or -S, or in an environment of its own (env -i, docker run, ssh): pass PYTHONPATH, "
    "CUDA_VISIBLE_DEVICES and the variables that begin with COLOCATE_ through to it"
)
BARE_S = 1.0
PROBE_FAILED = r"colocate: probe (?:record given up|not started|not loaded)"
"""With these words `colocate.probe` says that it does not follow a process, or no more."""


class TrainingMonitor:
    """Follows one training over all its processes."""

    def __init__(self, role: Role, training: Training, directory: GroupDirectory) -> None:
        self.role = role
        self.training = training
        self.processes: list[Process] = []
        self.ready_t: float | None = None
        self.gave_up: str | None = None
        self.replayed = False
        self.wanted: tuple[Allocator, ...] = ()
        self.stalled_after_s: float | None = None
        self.timed_out_after_s: float | None = None
        self.held_bytes: int | None = None
        self.held_gpu = False
        self.process_peaks: tuple[ProcessPeak, ...] = ()
        self.listed: tuple[tuple[float, int], ...] = ()
        self._directory = directory
        self._begun_at, self._begun_t = time.time(), time.monotonic()
        self._elsewhere = False
        self._told: set[int] = set()
        self._with_own_numbers: set[int] = set()
        self._events = EventReader(directory.events(role), time.monotonic())
        self._probe = ProbeReader(directory.probe(role), time.monotonic())
        self._looked_at: dict[int, bool] = {}
        self._bare_since_s: dict[int, float] = {}

    @property
    def patterns(self) -> dict[str, str]:
        """What to look for in the training's output besides out-of-memories: tracebacks, progress and metrics."""
        patterns = {_TRACEBACK: r"^Traceback \(most recent call last\):", _PROBE_LOST: PROBE_FAILED}
        if self.training.progress_pattern:
            patterns[_PROGRESS] = self.training.progress_pattern
        # As in the study's catalogs, letters of either case match and the last match wins.
        metrics = {_METRIC + name: f"(?i:{pattern})" for name, pattern in self.training.metric_patterns.items()}
        return patterns | metrics

    def poll(self) -> None:
        """Read what came since the last call."""
        for process in self.processes[-1:]:
            process.poll()
        self._events.poll()
        self._probe.poll()
        told = {allocator.pid for allocator in self._probe.allocators}
        if told - self._told:
            self._told = told
            self._elsewhere = self._elsewhere or any(map(has_own_numbers, self.pids))
        self.held_gpu = self.held_gpu or any(allocator.max_reserved_bytes for allocator in self._probe.allocators)

    def ask_for_peaks(self, listed: Iterable[int], peak_bytes: Callable[[int, float], int | None]) -> None:
        """Have the driver's own maximum of every process of this training that is known, also of ended ones.

        ``listed`` are its processes on the driver's list. Those of its trees that nobody saw there are asked for too:
        a short process run falls between two lists. A number that a process in a PID namespace of its own tells is
        not ours to ask for. ``peak_bytes`` is given the number and the Unix time at which its run began.
        """
        reported = set() if self._elsewhere else {allocator.pid for allocator in self._probe.allocators}
        process_runs = {pid: number for number, process in enumerate(self.processes) for pid in process.pids}
        pids = sorted({*process_runs, *reported, *listed} - {0})
        last = len(self.processes) - 1
        begun = [self._begun_at + process.started_t - self._begun_t for process in self.processes] or [self._begun_at]
        asked = {pid: peak_bytes(pid, begun[process_runs.get(pid, 0)]) for pid in pids}
        self.process_peaks = tuple(
            ProcessPeak(pid, process_runs.get(pid, last), used) for pid, used in asked.items() if used is not None
        )
        self.held_gpu = self.held_gpu or bool(self.process_peaks)

    def look_for_probe(self, on_gpu: Iterable[int]) -> None:
        """Note of processes that hold memory on the GPU whether a probe of ours should be in them, while they live."""
        for pid in on_gpu:
            if pid not in self._looked_at:
                self._looked_at[pid] = probe_expected(pid)
                self._with_own_numbers |= {pid} if has_own_numbers(pid) else set()

    def look_for_environment(self) -> None:
        """Note, while no process of it has the probe, a Python that was started without the variables for one.

        For some time, since a process that becomes another program shows no environment for a moment.
        """
        if self._probe.started:
            return
        bare = [pid for pid in self.pids if probe_expected(pid) and variable_of(pid, PROBE) is None]
        self._bare_since_s = {pid: self._bare_since_s.get(pid, time.monotonic()) for pid in bare}
        self.look_for_probe(pid for pid, since_s in self._bare_since_s.items() if time.monotonic() - since_s > BARE_S)

    @property
    def probe_missing(self) -> str | None:
        """Why there is no probe in a process that has memory on the GPU and could have one."""
        missing = [pid for pid, expected in self._looked_at.items() if expected and pid not in self._probe.started]
        if self._probe.started:  # one in a PID namespace tells another number than we know it by
            missing = [pid for pid in missing if pid not in self._with_own_numbers]
        told = [self._probe.lost[pid] for pid in missing if pid in self._probe.lost]
        if told:
            return told[0]
        return None if not missing else f"process {missing[0]} is Python's and did not load it, {WHY_MISSING}"

    @property
    def unobservable(self) -> bool:
        """Whatever it does from now on, nothing can be concluded: it may as well be ended."""
        return self.probe_missing is not None or any(process.slow_patterns for process in self.processes)

    @property
    def pids(self) -> frozenset[int]:
        """The numbers of all its processes that were seen."""
        return frozenset(pid for process in self.processes for pid in process.pids)

    @property
    def reported_by(self) -> frozenset[int]:
        """The processes that, as its events have it, wrote them."""
        return frozenset(event.pid for event in self._events.progress.progress_events)

    def process_faults(self) -> Iterator[tuple[str, str]]:
        """Yield the faults around the training, not in it."""
        for text in filter(None, (self._events.trouble, self._probe.trouble)):
            yield "events_unreadable", text
        for process in self.processes:
            if process.unkillable:
                names = "; ".join(describe(one.pid) for one in process.unkillable)
                yield "unkillable", f"{self.training.name} left processes that could not be ended: {names}"
            if process.too_many:
                yield "too_many_processes", process.too_many
            if process.log_failed:
                yield "log_failed", process.log_failed
            for name in process.slow_patterns:
                pattern = self.training.progress_pattern if name == _PROGRESS else self.patterns.get(name)
                expected = "expected a pattern that a log can be searched for, found one that takes too long"
                text = f"{self.training.name}: {expected}: {pattern!r} ({name}); write it without nested repeats"
                yield "slow_pattern", text
            if process.supervisor_lost:
                yield "supervisor_lost", process.supervisor_lost

    def notes(self) -> Iterator[tuple[str, str]]:
        """Yield remarks that harm no verdict."""
        if self._events.bad_lines:
            text = f"{self._events.bad_lines} lines of its events are none, or of another time than that of the run"
            yield "bad_events", f"{self.training.name}: {text}"

    @property
    def tells_events(self) -> bool:
        """Return whether it writes events."""
        return bool(self._events.progress.progress_events)

    @property
    def num_steps(self) -> int:
        """Steps known so far, from whichever source has seen more."""
        counted = sum(allocator.optimizer_steps for allocator in self._probe.allocators)
        return max(self._events.num_steps, counted, len(self._progress_lines()))

    @property
    def simulated_t(self) -> float | None:
        """Return when it first finished an epoch or the whole program."""
        ends = [epoch.elapsed_s for epoch in self._events.epochs[:1]]
        ends += [process.exit.ended_s for process in self.processes if process.exit is not None and process.exit.ok]
        return min(ends, default=None)

    @property
    def stepping_s(self) -> float:
        """Return for how long it has made steps, by PyTorch or its log."""
        events = (*self._probe.progress.progress_events, *self._progress_lines())
        signs = [event.elapsed_s for event in events]
        return max(signs) - min(signs) if signs else 0.0

    @property
    def latest_t(self) -> float | None:
        """Return when it last printed something or made a step."""
        signs = [self._events.progress.latest_s, self._probe.progress.latest_s]
        signs += [time for process in self.processes[-1:] for time in (process.started_t, process.last_output_t)]
        return max((sign for sign in signs if sign is not None), default=None)

    def stepped_since(self, time_t: float) -> bool:
        """Return whether it made progress after an instant."""
        signs = [self._events.progress.latest_s, self._probe.progress.latest_s]
        signs += [event.elapsed_s for event in self._progress_lines()[-1:]]
        return any(sign is not None and sign > time_t for sign in signs)

    @property
    def ran_out_of_memory(self) -> bool:
        """Anybody has told of an out-of-memory of this training."""
        return bool(self._out_of_memory(0.0))

    @property
    def longest_pause_s(self) -> float:
        """The longest time between two signs of progress so far."""
        return max(self._events.progress.longest_pause_s, self._probe.progress.longest_pause_s)

    def member(self, origin_t: float) -> Member:
        """Everything so far as a record, with times relative to ``origin_t``."""
        self.poll()
        self._events.finish()
        process_runs = tuple(self._process_run(process, origin_t) for process in self.processes)
        held, held_by = self._held(origin_t, process_runs)
        return Member(
            role=self.role,
            name=self.training.name,
            argv=self.training.argv,
            uses_gpu=self.training.uses_gpu,
            process_runs=process_runs,
            ready_s=None if self.ready_t is None else self.ready_t - origin_t,
            gave_up=self.gave_up,
            stalled_after_s=self.stalled_after_s,
            timed_out_after_s=self.timed_out_after_s,
            held_gpu=self.held_gpu,
            held_bytes=self.held_bytes,
            process_peaks=self.process_peaks,
            held=held,
            held_by=held_by,
            held_at_least=at_least(since(origin_t, readings) for readings in self._probe.readings.values()),
            probe_lost=self._probe_lost_why is not None,
            probe_lost_why=self._probe_lost_why,
            progress_events=tuple(replace(one, elapsed_s=one.elapsed_s - origin_t) for one in self.progress_events),
            epochs=tuple(replace(epoch, elapsed_s=epoch.elapsed_s - origin_t) for epoch in self._events.epochs),
            out_of_memory=tuple(self._out_of_memory(origin_t)),
            memory_words=self._words(origin_t),
            allocators=self._probe.allocators,
            wanted=self.wanted,
            data=self._events.data,
            tracebacks=sum(process.match_counts.get(_TRACEBACK, 0) for process in self.processes),
            expects_metrics=bool(self.training.metric_patterns),
            metrics=self._metrics(),
        )

    def _held(
        self, origin_t: float, process_runs: tuple[ProcessRun, ...]
    ) -> tuple[tuple[tuple[float, int], ...], Literal["allocator", "processes"] | None]:
        """Return what it held over time, by its allocators or else by the driver's lists."""
        end_s = time.monotonic() - origin_t
        histories = {pid: since(origin_t, steps) for pid, steps in self._probe.histories.items()}
        reported = by_allocators(histories, self._probe.allocators, process_runs, end_s)
        if reported and self._probe_lost_why is None:  # a record that was given up says nothing of what came later
            return reported, "allocator"
        listed = by_lists(self.listed, end_s)
        return listed, "processes" if listed else None

    @property
    def _probe_lost_why(self) -> str | None:
        """What a probe said last, in its record or in the log, or that there is none; None where all is well."""
        said = [match.text for process in self.processes for match in process.matches if match.name == _PROBE_LOST]
        return next(iter([*self._probe.lost.values(), *said]), None) or self.probe_missing

    def _process_run(self, process: Process, origin_t: float) -> ProcessRun:
        ended = None if process.exit is None else replace(process.exit, ended_s=process.exit.ended_s - origin_t)
        log, lines = process.log.relative_to(self._directory.path), process.last_lines(LAST_LINES)
        return ProcessRun(str(log), process.started_t - origin_t, ended, lines, process.leftovers)

    @property
    def progress_events(self) -> tuple[ProgressEvent, ...]:
        """Its own events where it writes any, else lines of its log, else the steps that the probe counted."""
        if self.tells_events:
            return self._events.progress.progress_events
        lines = Progress()
        for event in self._progress_lines():
            lines.add(event)
        return lines.progress_events or self._probe.progress.progress_events

    def _progress_lines(self) -> list[ProgressEvent]:
        found = ((match, process.pid) for process in self.processes for match in process.matches)
        return [ProgressEvent(match.t, pid, "pattern") for match, pid in found if match.name == _PROGRESS]

    def _out_of_memory(self, origin_t: float) -> list[OutOfMemory]:
        reported = [*self._events.out_of_memory, *self._probe.out_of_memory]
        if any(process.exit and not process.exit.ok and not process.exit.stopped for process in self.processes):
            reported += self._probe.caught_by_pytorch  # it failed all the same
        if not reported:
            # Asked twenty times a second, so without the last lines of the logs.
            runs = [ProcessRun(process.log.name, process.started_t, process.exit) for process in self.processes]
            counted = counted_none(self._probe.allocators, probe_lost=self._probe_lost_why is not None)
            proof = [words for words in self._words(0.0) if weight(words, runs, counted) == "proof"]
            reported = [OutOfMemory("log", words.text, words.count, words.elapsed_s) for words in proof[:1]]
        return [replace(o, elapsed_s=None if o.elapsed_s is None else o.elapsed_s - origin_t) for o in reported]

    def _words(self, origin_t: float) -> tuple[MemoryWords, ...]:
        """The lines of its logs that speak of a full memory: the first of each kind of a process, with their number."""
        found = []
        for number, process in enumerate(self.processes):
            first = {match.name: match for match in reversed(process.matches)}
            for name, match in sorted(first.items(), key=lambda item: item[1].t):
                if (judged := out_of_memory.parsed(name)) is not None:
                    kind = judged.framework, judged.certainty, judged.memory
                    count = process.match_counts.get(name, 1)
                    found.append(MemoryWords(*kind, match.text, count, match.t - origin_t, number))
        return tuple(found)

    def _metrics(self) -> dict[str, float]:
        """The last value of every metric that the catalog looks for in the log."""
        found: dict[str, float] = {}
        for match in chain.from_iterable(process.matches for process in self.processes):
            if match.name.startswith(_METRIC) and match.value is not None:
                with suppress(ValueError):  # the pattern may fit what is no number
                    found[match.name.removeprefix(_METRIC)] = float(match.value)
        return found


def probe_expected(pid: int) -> bool:
    """A living process is Python's, so that the harness's environment should have given it the probe.

    Also a program that has Python in it, such as a frozen one: PyTorch in there would not be followed.
    """
    try:
        if Path(f"/proc/{pid}/exe").readlink().name.startswith(("python", "pypy")):
            return True
        return "/libpython" in Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:  # gone, or somebody else's
        return False


def since(origin_t: float, steps: Iterable[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    """What was held over time, by a clock that begins at an instant."""
    return tuple((at - origin_t, size) for at, size in steps)
