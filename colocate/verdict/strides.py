# SPDX-License-Identifier: Apache-2.0
"""When a background demonstrably trained: between which of its signs of progress, and when it only stood still.

Two neighbouring steps of one process enclose a stride, whatever it tells of phases in between. A short one is training.
A long one may be an evaluation, a checkpoint or a pause, and from outside they look alike, so it counts only as far as
it is usual for this training: what a background does only while the foreground trains proves no load. Pure.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from colocate.verdict.evidence import STEP_KINDS, Evidence, Interval, Member, ProgressEvent


class Stride(NamedTuple):
    """The time between two neighbouring steps, or between one and the first or last sign of its process.

    ``told`` are the signs in between that are no steps, and ``quiet_s`` the longest time without any sign.
    """

    earlier: ProgressEvent
    later: ProgressEvent
    told: tuple[ProgressEvent, ...] = ()
    quiet_s: float = 0.0

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


def strides(evidence: Evidence, member: Member, window: Interval) -> tuple[Stride, ...]:
    """The strides of a member in which it demonstrably trained.

    ``window`` is the time in which the foreground trained. All strides that may be pauses together get no more of it
    than the share that the plan leaves free, so the shorter the window, the shorter the pause. More is believed of
    those that are like others outside of it, and of those that come again and again between short ones. On a virtual
    GPU, where time says nothing, a stride may last as long as a training may be silent.
    """
    found, stall_s = neighbours(member), evidence.limits.stall_s
    usual_s = _usual_step_s(found)
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
        signs = open_.setdefault((_run_of(member, event), event.pid), [])
        signs.append(event)
        if event.kind in STEP_KINDS and len(signs) > 1:
            found.append(_stride(signs))
            del signs[:-1]
    return found + [_stride(signs) for signs in open_.values() if len(signs) > 1]


def _stride(signs: Sequence[ProgressEvent]) -> Stride:
    quiet_s = max(later.elapsed_s - earlier.elapsed_s for earlier, later in pairwise(signs))
    return Stride(signs[0], signs[-1], tuple(signs[1:-1]), quiet_s)


def _run_of(member: Member, event: ProgressEvent) -> int:
    """The process run that had begun last when an event came."""
    return sum(run.started_s <= event.elapsed_s for run in member.process_runs)


def _parted(long: Iterable[Stride], short: Sequence[Stride], window: Interval) -> tuple[list[Stride], list[Stride]]:
    """Long strides that are usual for this training, and those that may be pauses."""
    usual: list[Stride] = []
    doubtful: list[Stride] = []
    by_kind: dict[object, list[Stride]] = defaultdict(list)
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


def _usual_step_s(strides: Iterable[Stride]) -> float:
    lengths = [stride.length_s for stride in strides if stride.is_plain]
    return median(lengths) if lengths else 0.0
