# SPDX-License-Identifier: Apache-2.0
"""The evidence of one group as frozen records: enough to judge it again without a GPU.

Times are seconds since the monitor started (``elapsed_s`` and names ending in ``_s``); sizes are bytes. None is what
nobody could tell. Knows neither how the readings were taken nor what they mean: `colocate.verdict.rules` judges them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from operator import attrgetter
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from colocate.device import DeviceInfo
from colocate.plan import Role
from colocate.process import Exit
from colocate.verdict.coverage import Coverage

SCHEMA = 1

EVENT_KINDS = frozenset({"ready", "phase", "step", "epoch_end", "end"})
STEP_KINDS = frozenset({"step", "optimizer", "pattern"})

Owner = Literal["foreground", "background", "foreign", "unknown", "balloon"]
Interval = tuple[float, float]


class Sample(NamedTuple):
    """One reading of the GPU's memory: all processes together."""

    elapsed_s: float
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without a sample, and why; ``asleep_s`` is time of a suspension, which no monotonic clock counts."""

    start_s: float
    end_s: float
    reason: str
    asleep_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Trace:
    """The samples of one run in order, and what the sampling itself cost.

    ``missed_ticks`` counts samples that came too late to stand for their own tick; ``reading_s`` is the processor time
    that the readings took, ``rejected`` counts implausible readings (outside 0 to the GPU's total).
    """

    samples: tuple[Sample, ...]
    interval_s: float
    gaps: tuple[Gap, ...] = ()
    missed_ticks: int = 0
    rejected: int = 0
    reading_s: float | None = None
    duration_s: float | None = None
    lost: str | None = None

    @property
    def peak(self) -> Sample | None:
        """The sample with the most memory in use, the first of equals; None without samples."""
        return max(self.samples, key=lambda sample: sample.used_bytes, default=None)

    def between(self, start_s: float, end_s: float) -> tuple[Sample, ...]:
        """The samples between two instants, both included."""
        at = attrgetter("elapsed_s")
        return self.samples[bisect_left(self.samples, start_s, key=at) : bisect_right(self.samples, end_s, key=at)]

    def used_between(self, start_s: float, end_s: float) -> list[int]:
        """What was in use between two instants, both included, in bytes."""
        return [sample.used_bytes for sample in self.between(start_s, end_s)]

    def longest_gap_s(self, start_s: float, end_s: float) -> float:
        """The longest time without a sample between two instants; all of it when there was no sample at all."""
        instants = [start_s, *(sample.elapsed_s for sample in self.between(start_s, end_s)), end_s]
        asleep = [gap.asleep_s for gap in self.gaps if start_s <= gap.end_s and gap.start_s <= end_s]
        return max([later - earlier for earlier, later in pairwise(instants)] + asleep)


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """A sign of progress of a training, and when.

    ``kind`` is the event's name (see `EVENT_KINDS`), ``optimizer`` for steps that the probe counted, or ``pattern`` for
    a line of the log that matched the catalog's progress pattern.
    """

    elapsed_s: float
    pid: int
    kind: str
    phase: str | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Epoch:
    """The record that a training writes when an epoch ends."""

    elapsed_s: float
    epoch: int
    steps: int
    steps_full: int
    cut: bool
    metrics: dict[str, float] = field(default_factory=dict)
    samples_per_s: float | None = None
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """An out-of-memory, whoever told of it: the training's own event, the probe's counter, or a line of the log."""

    source: Literal["event", "probe", "log"]
    message: str
    count: int = 1
    elapsed_s: float | None = None
    requested_bytes: int | None = None
    reserved_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryWords:
    """Lines of a log that speak of memory that ran out, as `colocate.process.out_of_memory` judges them.

    ``text`` is the first of ``count`` alike, printed by the process of this number of ``process_run``.
    """

    framework: str
    certainty: Literal["raised", "reported", "possible", "mentioned"]
    memory: Literal["gpu", "host"]
    text: str
    count: int
    elapsed_s: float
    process_run: int


@dataclass(frozen=True, slots=True)
class Allocator:
    """The latest statistics of PyTorch's allocator inside one process, read by the probe.

    On the virtual GPU the allocator is simulated; ``context_bytes`` is then the estimated CUDA context,
    ``context_range_bytes`` from what to what it may be, and ``max_reserved_bound_bytes`` the peak with the workspaces
    that convolutions could take, and ``coverage`` how much of the program was run. ``certain_reserved_bytes`` is the
    peak before the first assumption that only raises it, with what memory that surely grows adds; None where there was
    neither. ``open_branches`` are places where the program decided by a value that nobody knows and that lead to other
    work; ``sized_by_free`` says that it asked how much memory is free, and took most of it; ``compiled`` that compiled
    functions ran, whose memory plan is not known, and ``half`` that matrices were multiplied in half precision.
    """

    pid: int
    mode: Literal["cuda", "virtual"]
    torch: str | None = None
    optimizer_steps: int = 0
    max_allocated_bytes: int | None = None
    max_reserved_bytes: int | None = None
    num_ooms: int = 0
    ooms_raised: int | None = None
    num_alloc_retries: int = 0
    context_bytes: int | None = None
    convolutions: bool = False
    compiled: bool = False
    half: bool = False
    batches_per_pass: int | None = None
    passes_cut: int = 0
    notes: tuple[str, ...] = ()
    unsupported: str | None = None
    context_range_bytes: tuple[int, int] | None = None
    max_reserved_bound_bytes: int | None = None
    coverage: Coverage | None = None
    certain_reserved_bytes: int | None = None
    open_branches: tuple[str, ...] = ()
    sized_by_free: bool = False


@dataclass(frozen=True, slots=True)
class ProcessRun:
    """One process of a training; ``leftovers`` describe processes that outlived the first one and were ended by us."""

    log: str
    started_s: float
    exit: Exit | None = None
    last_lines: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    @property
    def span(self) -> Interval:
        """From its start to its end, which is infinite where none is known."""
        return self.started_s, inf if self.exit is None else self.exit.ended_s

    @property
    def failed(self) -> bool:
        """It ended badly, and this harness did not end it."""
        return self.exit is not None and not self.exit.ok and not self.exit.stopped


@dataclass(frozen=True, slots=True)
class ProcessPeak:
    """The most that one process of a member ever held, by the driver's accounting; its process run counts from 0."""

    pid: int
    process_run: int
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Member:
    """One of the two trainings of a group and everything it showed.

    ``wanted`` is what it held when, after an out-of-memory on a virtual GPU, it was run alone on one that refuses
    nothing. ``held`` is what it held over time, each pair a second and the bytes from then on: told by its allocators
    (``held_by``), never below what they did hold, or by the driver's lists of processes, which miss what happens
    between them. ``held_at_least`` is what its allocators held in any case, by two readings in a row. ``probe_lost``:
    a probe in it could not start, is missing, or said that it would tell no more, ``probe_lost_why`` says which.
    ``memory_words`` are lines of its log; those that prove an out-of-memory are in ``out_of_memory`` too.
    """

    role: Role
    name: str
    argv: tuple[str, ...]
    uses_gpu: bool = True
    process_runs: tuple[ProcessRun, ...] = ()
    ready_s: float | None = None
    gave_up: str | None = None
    stalled_after_s: float | None = None
    timed_out_after_s: float | None = None
    held_gpu: bool = False
    held_bytes: int | None = None
    process_peaks: tuple[ProcessPeak, ...] = ()
    held: tuple[tuple[float, int], ...] = ()
    held_by: Literal["allocator", "processes"] | None = None
    held_at_least: tuple[tuple[float, int], ...] = ()
    probe_lost: bool = False
    probe_lost_why: str | None = None
    progress_events: tuple[ProgressEvent, ...] = ()
    epochs: tuple[Epoch, ...] = ()
    out_of_memory: tuple[OutOfMemory, ...] = ()
    memory_words: tuple[MemoryWords, ...] = ()
    allocators: tuple[Allocator, ...] = ()
    wanted: tuple[Allocator, ...] = ()
    data: str | None = None
    tracebacks: int = 0
    expects_metrics: bool = False
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def last_exit(self) -> Exit | None:
        """Return how the latest process ended, or None while it runs or if none was started."""
        return self.process_runs[-1].exit if self.process_runs else None

    @property
    def process_run(self) -> Interval | None:
        """Return its time from the first start to the last exit, or None while it runs or if none was started."""
        end = self.last_exit
        return None if end is None else (self.process_runs[0].started_s, end.ended_s)

    @property
    def reserved_bytes(self) -> list[int]:
        """The maximum of each of its allocators that held memory."""
        return [one.max_reserved_bytes for one in self.allocators if one.max_reserved_bytes]

    @property
    def tells_events(self) -> bool:
        """Return whether it writes events, so that the end of an epoch need not be guessed."""
        return any(event.kind in EVENT_KINDS for event in self.progress_events)

    @property
    def epoch_cut(self) -> bool:
        """Return whether it made fewer steps than a full epoch has."""
        return any(epoch.cut for epoch in self.epochs) or any(one.passes_cut for one in self.allocators)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that was seen holding memory on the GPU, and from when to when.

    ``start_time`` (clock ticks since boot) tells it from a later process of the same number. An ``unknown`` one is on
    the driver's list but not among the processes that can be seen here, as in a container that gets the host's numbers.
    ``framework`` names one that takes memory in advance, ``share`` how much of the GPU where its environment says so.
    The ``balloon`` is what makes a large GPU a small one; no reading of memory counts it.
    """

    pid: int
    owner: Owner
    name: str
    first_s: float
    last_s: float
    max_used_bytes: int | None = None
    start_time: int | None = None
    framework: str | None = None
    share: float | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A member on one of the driver's lists: how many of its processes, and their memory; None where it is not told."""

    processes: int = 0
    used_bytes: int | None = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """One of the driver's lists of processes: what it tells of everybody together, and of each member.

    ``used_bytes`` is the sum over all processes whose memory is told, the balloon's left out.
    """

    elapsed_s: float
    used_bytes: int
    foreground: Listed = Listed()
    background: Listed = Listed()

    def of(self, role: Role) -> Listed:
        """What it tells of the member of a role."""
        return self.foreground if role == "foreground" else self.background


@dataclass(frozen=True, slots=True)
class JudgedLimits:
    """The plan's limits, copied into the evidence so that it can be judged by itself."""

    peak_bytes: int
    gpu_bytes: int
    overlap: float = 0.8
    longest_gap_s: float = 2.0
    stall_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was observed of one group; `colocate.verdict.rules.judge` needs nothing else.

    ``faults`` are failures of the harness or the GPU, each with its reason code; any of them forbids a verdict.
    ``notes`` are what else is worth knowing, coded alike. ``attempt`` counts the times that this run of the group was
    begun, ``run`` the runs that the plan asks for. ``host`` is the machine.
    """

    group: str
    plan: str
    device: DeviceInfo
    limits: JudgedLimits
    baseline_bytes: int | None
    trace: Trace
    foreground: Member
    background: Member | None
    gpu_processes: tuple[GpuProcess, ...] = ()
    listings: tuple[Listing, ...] = ()
    returned_to_baseline: bool | None = None
    final_bytes: int | None = None
    faults: tuple[tuple[str, str], ...] = ()
    started_at: str | None = None
    duration_s: float | None = None
    fixed_s: float | None = None
    gpu_energy_j: float | None = None
    cpu_energy_j: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    attempt: int = 1
    run: int = 1
    notes: tuple[tuple[str, str], ...] = ()
    host: str | None = None
    schema: int = SCHEMA

    @property
    def members(self) -> tuple[Member, ...]:
        """Foreground first, then the background if the group has one."""
        return (self.foreground,) if self.background is None else (self.foreground, self.background)

    @property
    def torch(self) -> str | None:
        """The version of PyTorch that one of the trainings told of; None if neither did."""
        return next((one.torch for member in self.members for one in member.allocators if one.torch), None)

    def member(self, role: Role) -> Member | None:
        """The member of a role; None for the background of a group that has none."""
        return self.foreground if role == "foreground" else self.background

    def to_json(self) -> dict[str, Any]:
        """Everything but the samples, which go into ``trace.csv``, as JSON types."""
        return dict(_ADAPTER.dump_python(replace(self, trace=replace(self.trace, samples=())), mode="json"))

    @classmethod
    def from_json(cls, document: Any, samples: Iterable[Sample]) -> "Evidence":
        """The inverse of :meth:`to_json`, with the samples put back.

        Raises:
            pydantic.ValidationError: the document is no evidence of this schema.
        """
        bare = _ADAPTER.validate_python(document)
        return replace(bare, trace=replace(bare.trace, samples=tuple(samples)))


_ADAPTER = TypeAdapter(Evidence)
