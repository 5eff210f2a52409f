# SPDX-License-Identifier: Apache-2.0
"""Measure the overlap of two trainings: when, for how long, how many steps, and in which phases.

Pure, over stored evidence. How much of it is enough is `colocate.verdict.rules`'s business.

Two neighbouring steps of one process enclose a stride, whatever it tells of phases in between. A short one is training.
A long one may be an evaluation, a checkpoint or a pause, and from outside they look alike, so it counts only as far as
it is usual for this training: what a background does only while the foreground trains proves no load.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf
from statistics import median
from typing import NamedTuple

from colocate.units import MIB, format_mib
from colocate.verdict.evidence import STEP_KINDS, Evidence, Interval, Listing, Member, ProgressEvent
from colocate.verdict.memory_history import Steps

# What a background must go on holding: a share of what it held before, where that was enough to tell.
LEAST_SHARE = 0.25
LEAST_BYTES = 256 * MIB

AROUND_S = 0.5  # so far a list and the samples around it may be apart

PhasePairs = tuple[tuple[str, str], ...]
"""Pairs of a phase of the foreground and one of the background."""

# Between two steps of a phase so many usual steps, and so many seconds besides, are training, and more is a pause.
_PAUSE_STEPS = 20
_PAUSE_S = 5.0

# So many usual steps are never long, and neither is half a second: any machine has such gaps. One that is busy has
# longer ones, which the foreground and the sampling show too.
_SHORT_STEPS = 4
_SHORT_S = 0.5
_BUSY_S = 1.0

# Two strides of a kind are alike when the longer one is not longer than this.
_ALIKE = 1.5

# Long strides are this training's habit when there are so many of them, between so many short ones each.
_HABIT = 3
_SHORT_PER_LONG = 5

# So many signs between two steps tell one kind of stride from another.
_MOST_TOLD = 8


def foreground_window(evidence: Evidence) -> Interval | None:
    """Return the time in which the foreground trained: from its first sign to its last step or its last epoch's end.

    Without such an end to its last sign, and without any sign the whole time of its process.
    """
    member = evidence.foreground
    if not member.progress_events:
        return member.process_run if member.held_gpu else None
    start_s, last_s = member.progress_events[0].elapsed_s, member.progress_events[-1].elapsed_s
    if not member.epochs:
        return start_s, last_s
    steps = [event.elapsed_s for event in member.progress_events if event.kind in STEP_KINDS]
    return start_s, max([start_s, *steps, *(epoch.elapsed_s for epoch in member.epochs)])


def overlap(evidence: Evidence) -> tuple[float | None, int]:
    """The share of the foreground's window in which the background trained too, and the steps that it made beside it.

    The share is None without a background or a window. A step counts that lay at least in part inside.
    """
    window = foreground_window(evidence)
    if evidence.background is None or window is None:
        return None, 0
    found = strides(evidence, evidence.background, window)
    steps = [(one.begun_s, one.later.elapsed_s) for one in found if one.later.kind in STEP_KINDS]
    num_steps = sum(start <= window[1] and end >= window[0] for start, end in steps)
    if window[1] <= window[0]:
        return None, num_steps
    beside = _merged((stride.earlier.elapsed_s, stride.later.elapsed_s) for stride in found)
    return _common_s([window], beside) / (window[1] - window[0]), num_steps


# When a training demonstrably trained.


class Stride(NamedTuple):
    """The time between two neighbouring steps, or between one and the first or last sign of its process.

    ``told`` are the signs in between that are no steps, and ``quiet_s`` the longest time without any sign.
    """

    earlier: ProgressEvent
    later: ProgressEvent
    told: tuple[ProgressEvent, ...]
    quiet_s: float

    @property
    def length_s(self) -> float:
        """From one to the other."""
        return self.later.elapsed_s - self.earlier.elapsed_s

    @property
    def begun_s(self) -> float:
        """The earliest that the step at its end can have begun: at the last sign before it."""
        return (self.told[-1] if self.told else self.earlier).elapsed_s

    @property
    def kind(self) -> object:
        """From what to what, and what was told on the way: only strides of one kind are compared."""
        return tuple((event.kind, event.phase) for event in (self.earlier, *self.told[:_MOST_TOLD], self.later))

    @property
    def is_plain(self) -> bool:
        """From one step to the next of the same kind, with nothing in between."""
        return not self.told and self.earlier.kind == self.later.kind and self.later.kind in STEP_KINDS

    @property
    def within_a_phase(self) -> bool:
        """The same by the training's own events, in one phase."""
        return self.is_plain and self.later.kind == "step" and self.later.phase == self.earlier.phase is not None

    def inside_s(self, window: Interval) -> float:
        """How much of it lies in a window."""
        return max(0.0, min(self.later.elapsed_s, window[1]) - max(self.earlier.elapsed_s, window[0]))


def strides(evidence: Evidence, member: Member, window: Interval) -> tuple[Stride, ...]:
    """The strides of a member in which it demonstrably trained.

    ``window`` is the time in which the foreground trained. All strides that may be pauses together get no more of it
    than the share that the plan leaves free, so the shorter the window, the shorter the pause. More is believed of
    those that are like others outside of it, and of those that come again and again between short ones. On a virtual
    GPU, where time says nothing, a stride may last as long as a training may be silent.
    """
    found, stall_s = neighbours(member), evidence.limits.stall_s
    plain = [stride.length_s for stride in found if stride.is_plain]
    usual_s = median(plain) if plain else 0.0
    within_a_phase_s = min(stall_s, _PAUSE_STEPS * usual_s + _PAUSE_S)
    longest = [one for one in found if one.quiet_s <= (within_a_phase_s if one.within_a_phase else stall_s)]
    if evidence.device.basis == "predicted":
        return tuple(longest)
    busy_s = _busy_s(evidence, window)
    short_s = max(busy_s, _SHORT_STEPS * usual_s)
    long = [one for one in longest if one.length_s > short_s]
    believed = [one for one in longest if one.length_s <= short_s]
    usual, doubtful = _parted(long, believed, window)
    left_s = max(busy_s, (1 - evidence.limits.overlap) * (window[1] - window[0]))
    for stride in doubtful:
        left_s -= stride.inside_s(window)
        if left_s >= 0:
            usual.append(stride)
    return tuple(sorted([*believed, *usual], key=lambda stride: stride.earlier.elapsed_s))


def _busy_s(evidence: Evidence, window: Interval) -> float:
    """The longest gap that the machine made while the foreground trained: in its own signs, or between samples."""
    own = [one.quiet_s for one in neighbours(evidence.foreground) if one.inside_s(window)]
    sampled_s = evidence.trace.longest_gap_s(*window) if evidence.trace.samples else 0.0
    return max(_SHORT_S, min(_BUSY_S, max([sampled_s, *own])))


def neighbours(member: Member) -> list[Stride]:
    """The strides of a member, in order of their ends.

    A number means one process within one run only: in a PID namespace the next run has the same.
    """
    found: list[Stride] = []
    open_: dict[tuple[int, int], list[ProgressEvent]] = {}
    for event in member.progress_events:
        run = sum(one.started_s <= event.elapsed_s for one in member.process_runs)  # the one that had begun last
        signs = open_.setdefault((run, event.pid), [])
        signs.append(event)
        if event.kind in STEP_KINDS and len(signs) > 1:
            found.append(_stride(signs))
            del signs[:-1]
    return found + [_stride(signs) for signs in open_.values() if len(signs) > 1]


def _stride(signs: Sequence[ProgressEvent]) -> Stride:
    quiet_s = max(later.elapsed_s - earlier.elapsed_s for earlier, later in pairwise(signs))
    return Stride(signs[0], signs[-1], tuple(signs[1:-1]), quiet_s)


def _parted(long: Iterable[Stride], short: Sequence[Stride], window: Interval) -> tuple[list[Stride], list[Stride]]:
    """Long strides that are usual for this training, and those that may be pauses."""
    usual, doubtful = list[Stride](), list[Stride]()
    by_kind = defaultdict[object, list[Stride]](list)
    for stride in long:
        by_kind[stride.kind].append(stride)
    num_short = sum(stride.inside_s(window) > 0 for stride in short)
    for alike in by_kind.values():
        outside_s = max((stride.length_s for stride in alike if not stride.inside_s(window)), default=0.0)
        inside = [stride for stride in alike if stride.inside_s(window)]
        often = len(inside) >= _HABIT and num_short >= _SHORT_PER_LONG * len(inside)
        habit_s = median(stride.length_s for stride in inside) if often else 0.0
        for stride in alike:
            is_usual = stride.length_s <= _ALIKE * max(outside_s, habit_s)
            (usual if is_usual or not stride.inside_s(window) else doubtful).append(stride)
    return usual, sorted(doubtful, key=lambda stride: stride.earlier.elapsed_s)


# Whether the background's memory was there all the time.


def memory_missing_beside(evidence: Evidence) -> str | None:
    """Why the background was no load on memory while the foreground trained, in words; None where it was one.

    By the driver's lists of that time, and by what its allocators held in any case. A process keeps its CUDA context
    as long as it lives, so one that is on no list any more uses the GPU no more.
    """
    background, window = evidence.background, foreground_window(evidence)
    if background is None or window is None or not background.uses_gpu or evidence.device.basis != "measured":
        return None
    known = any(one.background.processes for one in evidence.listings)
    inside = [one for one in evidence.listings if window[0] <= one.elapsed_s <= window[1] and _trains(background, one)]
    without = [one for one in inside if not one.background.processes]
    if known and without and len(without) > (1 - evidence.limits.overlap) * len(inside):
        return f"it was not on the driver's list at {without[0].elapsed_s:.1f} s, while the foreground trained"
    told = (_listed_most(evidence, window), _held_most(background, window), _left_most(evidence, background, window))
    for before, beside in told:
        if before is not None and beside is not None and before >= LEAST_BYTES and beside < before * LEAST_SHARE:
            return f"it held at most {format_mib(beside)} while the foreground trained, {format_mib(before)} before"
    return None


def _trains(background: Member, listing: Listing) -> bool:
    """One of its runs, which has made a step by then, was alive at a list."""
    runs = [run.span for run in background.process_runs if run.started_s <= listing.elapsed_s]
    if not runs or runs[-1][1] <= listing.elapsed_s + AROUND_S:  # while it ends it is on the list no more
        return False
    steps = (event.elapsed_s for event in background.progress_events if event.kind in STEP_KINDS)
    return any(runs[-1][0] <= at <= listing.elapsed_s for at in steps)


def _listed_most(evidence: Evidence, window: Interval) -> tuple[int | None, int | None]:
    """The most that the driver's lists have for the background before the window, and in it."""
    told = [(one.elapsed_s, one.background.used_bytes) for one in evidence.listings if one.background.processes]
    before = [size for at, size in told if size is not None and at < window[0]]
    beside = [size for at, size in told if size is not None and window[0] <= at <= window[1]]
    return max(before, default=None), max(beside, default=None)


def _held_most(background: Member, window: Interval) -> tuple[int | None, int | None]:
    """The same by its allocators, if they told of most of the window."""
    *steps, end = background.held_at_least or ((0.0, 0),)
    held = Steps.of(steps, end[0])
    beside = held.cut(*window)
    told_s = sum(until_s - start_s for start_s, until_s, _ in beside.spans())
    if not steps or told_s < (window[1] - window[0]) / 2:
        return None, None
    return held.cut(-inf, window[0]).highest, beside.highest


def _left_most(evidence: Evidence, background: Member, window: Interval) -> tuple[int | None, int | None]:
    """The same by the whole GPU, where lists do not tell: all beyond the baseline, then what the foreground leaves."""
    foreground, baseline_bytes = evidence.foreground, evidence.baseline_bytes
    if baseline_bytes is None or not foreground.process_runs or not background.process_runs:
        return None, None
    alone = evidence.trace.used_between(background.process_runs[0].started_s, foreground.process_runs[0].started_s)
    left = []
    for one in (one for one in evidence.listings if window[0] <= one.elapsed_s <= window[1]):
        around = evidence.trace.used_between(one.elapsed_s - AROUND_S, one.elapsed_s + AROUND_S)
        ours = one.foreground.used_bytes if one.foreground.processes else None
        if ours is not None and one.background.used_bytes is None and around:
            left.append(max(0, max(around) - baseline_bytes - ours))
    before = max(alone, default=None)
    return None if before is None else before - baseline_bytes, max(left, default=None)


# Which phases met.


def phases_met(evidence: Evidence) -> tuple[PhasePairs, PhasePairs]:
    """Find the pairs of phases that were seen at the same time, and those that were not."""
    if evidence.background is None:
        return (), ()
    ours, theirs = _phase_spans(evidence.foreground), _phase_spans(evidence.background)
    pairs = {(a, b): _common_s(ours[a], theirs[b]) > 0 for a in ours for b in theirs}
    together = tuple(pair for pair, seen in pairs.items() if seen)
    return together, tuple(pair for pair, seen in pairs.items() if not seen)


def _phase_spans(member: Member) -> dict[str, tuple[Interval, ...]]:
    spans = defaultdict[str, list[Interval]](list)
    for event, following in pairwise(member.progress_events):
        if event.phase and event.pid == following.pid:
            spans[event.phase].append((event.elapsed_s, following.elapsed_s))
    return {phase: _merged(intervals) for phase, intervals in spans.items()}


def _merged(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The same stretches of time without overlaps, in order."""
    result: list[Interval] = []
    for start, end in sorted(intervals):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return tuple(result)


def _common_s(left: Iterable[Interval], right: Iterable[Interval]) -> float:
    """Seconds that two sets of merged intervals have in common."""
    return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in left for b in right)
