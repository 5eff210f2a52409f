# SPDX-License-Identifier: Apache-2.0
"""Measure the overlap of two trainings: when, for how long, how many steps, and in which phases.

Pure, over stored evidence. How much of it is enough is `colocate.verdict.rules`'s business.
"""

from collections.abc import Iterable
from math import inf

from colocate.units import MIB, format_mib
from colocate.verdict.evidence import STEP_KINDS, Evidence, Interval, Listing, Member
from colocate.verdict.step_function import Steps
from colocate.verdict.strides import strides

# What a background must go on holding: a share of what it held before, where that was enough to tell.
LEAST_SHARE = 0.25
LEAST_BYTES = 256 * MIB

AROUND_S = 0.5  # so far a list and the samples around it may be apart

PhasePairs = tuple[tuple[str, str], ...]
"""Pairs of a phase of the foreground and one of the background."""


def foreground_window(evidence: Evidence) -> Interval | None:
    """Return the time in which the foreground trained: from its first sign to its last step or its last epoch's end.

    Without such an end to its last sign, and without any sign the whole time of its process.
    """
    member = evidence.foreground
    if not member.progress_events:
        return member.process_run if member.held_gpu else None
    steps = [event.elapsed_s for event in member.progress_events if event.kind in STEP_KINDS]
    ends = [*steps, *(epoch.elapsed_s for epoch in member.epochs)] if member.epochs else []
    start_s, last_s = member.progress_events[0].elapsed_s, member.progress_events[-1].elapsed_s
    return (start_s, max([start_s, *ends] if ends else [last_s]))


def overlap(evidence: Evidence) -> float | None:
    """Share of the foreground's window in which the background trained too; None without a background or window."""
    window = foreground_window(evidence)
    if evidence.background is None or window is None or window[1] <= window[0]:
        return None
    found = strides(evidence, evidence.background, window)
    beside = _merged((stride.earlier.elapsed_s, stride.later.elapsed_s) for stride in found)
    return _common_s([window], beside) / (window[1] - window[0])


def steps_beside(evidence: Evidence) -> int:
    """Steps of the background that lay, at least in part, inside the foreground's window."""
    window = foreground_window(evidence)
    if evidence.background is None or window is None:
        return 0
    found = strides(evidence, evidence.background, window)
    steps = [(one.begun_s, one.later.elapsed_s) for one in found if one.later.kind in STEP_KINDS]
    return sum(start <= window[1] and end >= window[0] for start, end in steps)


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
    runs = [
        (run.started_s, inf if run.exit is None else run.exit.ended_s)
        for run in background.process_runs
        if run.started_s <= listing.elapsed_s
    ]
    if not runs or runs[-1][1] <= listing.elapsed_s + AROUND_S:  # while it ends it is on the list no more
        return False
    steps = (event.elapsed_s for event in background.progress_events if event.kind in STEP_KINDS)
    return any(runs[-1][0] <= at <= listing.elapsed_s for at in steps)


def _listed_most(evidence: Evidence, window: Interval) -> tuple[int | None, int | None]:
    """The most that the driver's lists have for the background before the window, and in it."""
    told = [(one.elapsed_s, one.background.used_bytes) for one in evidence.listings if one.background.processes]
    known = [(at, size) for at, size in told if size is not None]
    before = [size for at, size in known if at < window[0]]
    return max(before, default=None), max((size for at, size in known if window[0] <= at <= window[1]), default=None)


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
    alone = _used(evidence, background.process_runs[0].started_s, foreground.process_runs[0].started_s)
    left = []
    for one in (one for one in evidence.listings if window[0] <= one.elapsed_s <= window[1]):
        around = _used(evidence, one.elapsed_s - AROUND_S, one.elapsed_s + AROUND_S)
        ours = one.foreground.used_bytes if one.foreground.processes else None
        if ours is not None and one.background.used_bytes is None and around:
            left.append(max(0, max(around) - baseline_bytes - ours))
    before = max(alone, default=None)
    return None if before is None else before - baseline_bytes, max(left, default=None)


def _used(evidence: Evidence, start_s: float, end_s: float) -> list[int]:
    return [sample.used_bytes for sample in evidence.trace.samples if start_s <= sample.elapsed_s <= end_s]


def phases_met(evidence: Evidence) -> tuple[PhasePairs, PhasePairs]:
    """Find the pairs of phases that were seen at the same time, and those that were not."""
    if evidence.background is None:
        return (), ()
    ours, theirs = _phase_spans(evidence.foreground), _phase_spans(evidence.background)
    pairs = {(a, b): _common_s(ours[a], theirs[b]) > 0 for a in ours for b in theirs}
    together = tuple(pair for pair, seen in pairs.items() if seen)
    return together, tuple(pair for pair, seen in pairs.items() if not seen)


def _phase_spans(member: Member) -> dict[str, tuple[Interval, ...]]:
    spans: dict[str, list[Interval]] = {}
    for event, following in zip(member.progress_events, member.progress_events[1:], strict=False):
        if event.phase and event.pid == following.pid:
            spans.setdefault(event.phase, []).append((event.elapsed_s, following.elapsed_s))
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
