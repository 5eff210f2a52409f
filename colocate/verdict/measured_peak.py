# SPDX-License-Identifier: Apache-2.0
"""Find the GPU's peak from all sources: samples, the driver's accounting, the allocators.

A sample is exact but may miss what happens between two of them. The driver's accounting and PyTorch's allocator keep
maxima of a single process and miss nothing, but do not tell what the others held at that moment. Put together they
give the peak's bounds. Where the allocators also told what they held when, maxima that never met in this run are not
added: that they might meet in another one is for `verdict.worst_case_peak`. Pure;
`verdict.predicted_peak` does the same for a GPU that does not exist.
"""

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import Literal

from colocate.plan import Role
from colocate.probe.virtual_gpu import CONTEXT_RANGE_BYTES
from colocate.units import MIB
from colocate.verdict.evidence import Evidence, Member
from colocate.verdict.memory_history import Steps, summed
from colocate.verdict.predicted_peak import PeakRange

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
    sampled = evidence.trace.peak
    found = [] if sampled is None else [PeakReading("samples", "gpu", sampled.used_bytes)]
    for member in evidence.members:
        accounted = [peak.used_bytes for peak in member.process_peaks]
        sources: dict[Source, list[int]] = {"accounting": accounted, "allocator": member.reserved_bytes}
        found += [PeakReading(source, member.role, max(sizes)) for source, sizes in sources.items() if sizes]
    return tuple(found)


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
    until_s = end_s(evidence)
    reported = summed((own_steps if one.held_by == "allocator" else _at_most)(one, until_s) for one in holding)
    return reported.highest + unreported_bytes(evidence, reported) if holding else 0


def own_steps(member: Member, until_s: float) -> Steps:
    """Return what a training held over time; what only the driver's accounting knows is added throughout.

    ``until_s`` is the end of one that is not known to have ended.
    """
    outside = _outside_bytes(member)
    starts = [run.started_s for run in member.process_runs[:1]] + [at for at, _ in member.held[:1]]
    started_s = min(starts, default=0.0)
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
    by_run = _by_process_run(member)
    missing += [by_run[number] - reported.cut(*run.span).highest for number, run in enumerate(member.process_runs)]
    return max(0, *missing)


def _by_process_run(member: Member) -> Counter[int]:
    """What the driver accounted for the processes of each process run together."""
    process_runs = Counter[int]()
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
    return max([*_by_process_run(member).values(), *member.reserved_bytes], default=None)


def _at_most(member: Member, until_s: float) -> Steps:
    """Return its maximum from start to end; allocators of one process run may have met, so they are added.

    Allocators do not tell of their CUDA contexts, which the driver's accounting does.
    """
    met = member.reserved_bytes if len(member.process_runs) == 1 else sorted(member.reserved_bytes)[-1:]
    contexts = 0 if member.process_peaks else len(met) * CONTEXT_RANGE_BYTES[1]
    started_s, ended_s = member.process_run or (0.0, until_s)
    return Steps.of([(started_s, max(own_peak_bytes(member) or 0, sum(met) + contexts))], ended_s)


def left_no_trace(evidence: Evidence) -> bool:
    """The GPU never held more than before the foreground began, and no list has it: its memory is on another GPU.

    As where a program chooses its GPU itself; its allocator's word says how much it holds, not where.
    """
    process_run = evidence.foreground.process_run
    listed = any(gpu_process.owner == "foreground" for gpu_process in evidence.gpu_processes)
    if evidence.device.basis != "measured" or process_run is None or listed or evidence.foreground.process_peaks:
        return False
    until_s = min(process_run[0] + BEGINNING_S, process_run[1])
    before = evidence.trace.used_between(settled_s(evidence, process_run[0]), until_s)
    beside = evidence.trace.used_between(*process_run)
    return bool(before and beside) and max(beside) <= min(before) + SPIKE_BYTES


def settled_s(evidence: Evidence, started_s: float) -> float:
    """From when on the GPU holds what it holds without the foreground, which was started at an instant."""
    ready_s = None if evidence.background is None else evidence.background.ready_s
    return started_s - BEGINNING_S if ready_s is None else ready_s


def _floor_bytes(evidence: Evidence) -> int:
    """Return the least that the GPU ever held: no process of ours is in it."""
    least = min(sample.used_bytes for sample in evidence.trace.samples)
    return least if evidence.baseline_bytes is None else min(least, evidence.baseline_bytes)


def _beside_bytes(evidence: Evidence, member: Member) -> int | None:
    own = own_peak_bytes(member)
    if own is None or not member.process_runs:
        return None
    start_s = member.process_runs[0].started_s - evidence.trace.interval_s  # the last sample without it counts
    inside = evidence.trace.used_between(start_s, member.process_runs[-1].span[1])
    # Of a member that ran between two samples nothing can be said but that the GPU held at least its floor.
    return own + min(inside, default=_floor_bytes(evidence))
