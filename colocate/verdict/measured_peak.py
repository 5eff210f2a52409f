# SPDX-License-Identifier: Apache-2.0
"""Find the GPU's peak from all sources: samples, the driver's accounting, the allocators.

A sample is exact but may miss what happens between two of them. The driver's accounting and PyTorch's allocator keep
maxima of a single process and miss nothing, but do not tell what the others held at that moment. Put together they
give the peak's bounds. Where the allocators also told what they held when, maxima that never met in this run are not
added: that they might meet in another one is `verdict.worst_case_peak`'s business. Pure;
`verdict.predicted_peak` does the same for a GPU that does not exist.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

from colocate.plan import Role
from colocate.probe.virtual_gpu import CONTEXT_RANGE_BYTES
from colocate.units import MIB
from colocate.verdict.evidence import Evidence, Member
from colocate.verdict.predicted_peak import PeakRange
from colocate.verdict.step_function import Steps, summed

# What samples may miss without a word: an allocator's smallest segments come and go.
SPIKE_BYTES = 64 * MIB

# In its first second a program loads its libraries: what the GPU holds then was there before.
BEGINNING_S = 1.0

Source = Literal["samples", "accounting", "allocator"]


@dataclass(frozen=True, slots=True)
class PeakReading:
    """One source's maximum: of the whole GPU, or of the largest process of a member."""

    source: Source
    of: Literal["gpu"] | Role
    used_bytes: int


def readings(evidence: Evidence) -> tuple[PeakReading, ...]:
    """List the maximum of each source, the GPU's first; a source without one is left out."""
    return tuple(_readings(evidence))


def _readings(evidence: Evidence) -> Iterator[PeakReading]:
    if evidence.trace.peak is not None:
        yield PeakReading("samples", "gpu", evidence.trace.peak.used_bytes)
    for member in evidence.members:
        accounted = max((peak.used_bytes for peak in member.process_peaks), default=None)
        if accounted is not None:
            yield PeakReading("accounting", member.role, accounted)
        reserved = max((allocator.max_reserved_bytes or 0 for allocator in member.allocators), default=0)
        if reserved:
            yield PeakReading("allocator", member.role, reserved)


def measured_peak(evidence: Evidence) -> PeakRange | None:
    """The bounds of a measured peak; None without samples, which nothing can stand in for.

    At least: the highest sample, and the largest process of ours on top of the least that the GPU ever held.
    Expected: a member's own maximum on top of the least that the GPU held while the member ran, which is what the
    others kept, and no less than any of the driver's lists adds up to. At most: on top of the baseline the most that
    all members can have held at one time, by what their allocators told; one that did not tell over time counts with
    its maximum all along. Sources that agree leave one number.
    """
    sampled = evidence.trace.peak
    if sampled is None:
        return None
    alone = [reading.used_bytes for reading in readings(evidence) if reading.of != "gpu"]
    low = max(sampled.used_bytes, _floor_bytes(evidence) + max(alone, default=0))
    beside = [_beside_bytes(evidence, member) for member in evidence.members]
    listed = max((listing.used_bytes for listing in evidence.listings), default=0)
    expected = max([low, listed, *filter(None, beside)])
    high = (evidence.baseline_bytes or 0) + _at_one_time_bytes(evidence)
    return PeakRange(low, expected, max(expected, high))


def _at_one_time_bytes(evidence: Evidence) -> int:
    """The most that the members can have held at one time; who did not tell when counts with its most all along."""
    holding = [member for member in evidence.members if own_peak_bytes(member)]
    reported = summed(
        own_steps(member, end_s(evidence)) if member.held_by == "allocator" else _at_most(member, end_s(evidence))
        for member in holding
    )
    return reported.highest + unreported_bytes(evidence, reported) if holding else 0


def own_steps(member: Member, until_s: float) -> Steps:
    """Return what a training held over time; what only the driver's accounting knows is added throughout.

    ``until_s`` is the end of one that is not known to have ended.
    """
    outside = _outside_bytes(member)
    started_s = min(
        [process_run.started_s for process_run in member.process_runs[:1]] + [at for at, _ in member.held[:1]],
        default=0.0,
    )
    ended_s = until_s if member.last_exit is None else min(member.last_exit.ended_s, until_s)
    return Steps.of([(started_s, outside), *((at, size + outside) for at, size in member.held)], ended_s)


def unreported_bytes(evidence: Evidence, reported: Steps) -> int:
    """The most that a sample shows beyond what the members told of that instant, such as their CUDA contexts.

    Where the driver keeps no accounting nobody else tells of them. A virtual GPU's contexts are told.
    """
    if evidence.device.basis == "predicted":
        return 0
    least = evidence.baseline_bytes or 0
    edges = [*(start_s for start_s, _ in reported.steps), reported.end_s]
    levels = [0, *(size for _, size in reported.steps), 0]
    late_s = evidence.trace.interval_s  # the end of a process and a sample are on two threads
    beyond = (
        used - least - max(levels[bisect_right(edges, at - late_s) : bisect_right(edges, at) + 1])
        for at, used in evidence.trace.samples
    )
    return max(0, *beyond)


def _outside_bytes(member: Member) -> int:
    """The most that the accounting of one process run knows beyond what was told of that process run."""
    reported = Steps.of(member.held, inf)
    missing = [(own_peak_bytes(member) or 0) - reported.highest]
    for number, used in _by_process_run(member).items():
        process_run = member.process_runs[number] if number < len(member.process_runs) else None
        if process_run is not None:
            ended_s = inf if process_run.exit is None else process_run.exit.ended_s
            missing.append(used - reported.cut(process_run.started_s, ended_s).highest)
    return max(0, *missing)


def _by_process_run(member: Member) -> Mapping[int, int]:
    process_runs: defaultdict[int, int] = defaultdict(int)
    for peak in member.process_peaks:
        process_runs[peak.process_run] += peak.used_bytes
    return process_runs


def end_s(evidence: Evidence) -> float:
    """Return when the sampling ended."""
    return max(evidence.trace.duration_s or 0.0, evidence.duration_s or 0.0, evidence.trace.samples[-1].elapsed_s)


def own_peak_bytes(member: Member) -> int | None:
    """The most that a member can have held: its processes of one process run together; None where no source tells.

    Of its allocators only the largest counts, because nobody tells which of them lived at the same time.
    """
    reserved = [allocator.max_reserved_bytes for allocator in member.allocators if allocator.max_reserved_bytes]
    return max([*_by_process_run(member).values(), *reserved], default=None)


def _at_most(member: Member, until_s: float) -> Steps:
    """Return its maximum from start to end; allocators of one process run may have met, so they are added.

    Allocators do not tell of their CUDA contexts, which the driver's accounting does.
    """
    reserved = [allocator.max_reserved_bytes for allocator in member.allocators if allocator.max_reserved_bytes]
    met = reserved if len(member.process_runs) == 1 else [max(reserved, default=0)] * bool(reserved)
    contexts = 0 if member.process_peaks else len(met) * CONTEXT_RANGE_BYTES[1]
    started_s, ended_s = member.process_run or (0.0, until_s)
    return Steps.of([(started_s, max(own_peak_bytes(member) or 0, sum(met) + contexts))], ended_s)


def left_no_trace(evidence: Evidence) -> bool:
    """The GPU never held more than before the foreground began, and no list has it: its memory is on another GPU.

    As where a program chooses its GPU itself; its allocator's word says how much it holds, not where.
    """
    process_run, background = evidence.foreground.process_run, evidence.background
    listed = any(gpu_process.owner == "foreground" for gpu_process in evidence.gpu_processes)
    if evidence.device.basis != "measured" or process_run is None or listed or evidence.foreground.process_peaks:
        return False
    since_s = process_run[0] - BEGINNING_S if background is None or background.ready_s is None else background.ready_s
    before, beside = (
        _sampled(evidence, since_s, min(process_run[0] + BEGINNING_S, process_run[1])),
        _sampled(evidence, *process_run),
    )
    return bool(before and beside) and max(beside) <= min(before) + SPIKE_BYTES


def _sampled(evidence: Evidence, start_s: float, end_s: float) -> list[int]:
    return [sample.used_bytes for sample in evidence.trace.samples if start_s <= sample.elapsed_s <= end_s]


def _floor_bytes(evidence: Evidence) -> int:
    """Return the least that the GPU ever held: no process of ours is in it."""
    least = min(sample.used_bytes for sample in evidence.trace.samples)
    return least if evidence.baseline_bytes is None else min(least, evidence.baseline_bytes)


def _beside_bytes(evidence: Evidence, member: Member) -> int | None:
    own = own_peak_bytes(member)
    if own is None or not member.process_runs:
        return None
    start_s = member.process_runs[0].started_s - evidence.trace.interval_s  # the last sample without it counts
    end = member.last_exit
    end_s = float("inf") if end is None else end.ended_s
    inside = _sampled(evidence, start_s, end_s)
    # Of a member that ran between two samples nothing can be said but that the GPU held at least its floor.
    return own + min(inside, default=_floor_bytes(evidence))
