# SPDX-License-Identifier: Apache-2.0
"""When a background demonstrably trained: between which of its signs of progress, and when it only stood still.

Two neighbouring signs of one process enclose a stride. A short one is training. A long one may be an evaluation, a
checkpoint or a pause, and from outside they look alike, so it counts only as far as it is usual for this training:
what a background does only while the foreground trains proves no load. Pure.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from colocate.verdict.evidence import STEP_KINDS, Evidence, Interval, Member, ProgressEvent

Stride = tuple[ProgressEvent, ProgressEvent]

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


def strides(evidence: Evidence, member: Member, window: Interval) -> tuple[Stride, ...]:
    """The strides of a member in which it demonstrably trained.

    ``window`` is the time in which the foreground trained. All strides that may be pauses together get no more of it
    than the share that the plan leaves free, so the shorter the window, the shorter the pause. More is believed of
    those that are like others outside of it, and of those that come again and again between short ones. On a virtual
    GPU, where time says nothing, a stride may last as long as a training may be silent.
    """
    pairs, stall_s = neighbours(member), evidence.limits.stall_s
    usual_s = _usual_step_s(pairs)
    within_a_phase_s = min(stall_s, _PAUSE_STEPS * usual_s + _PAUSE_S)
    longest = [pair for pair in pairs if _length_s(pair) <= (within_a_phase_s if _is_step(pair) else stall_s)]
    if evidence.device.basis == "predicted":
        return tuple(longest)
    busy_s = _busy_s(evidence, window)
    short_s = max(busy_s, _SHORT_STEPS * usual_s)
    long = [pair for pair in longest if _length_s(pair) > short_s]
    believed = [pair for pair in longest if _length_s(pair) <= short_s]
    usual, doubtful = _parted(long, believed, window)
    left_s = max(busy_s, (1 - evidence.limits.overlap) * (window[1] - window[0]))
    for pair in doubtful:
        left_s -= _inside_s(pair, window)
        if left_s >= 0:
            usual.append(pair)
    return tuple(sorted([*believed, *usual], key=lambda pair: pair[0].elapsed_s))


def _busy_s(evidence: Evidence, window: Interval) -> float:
    """The longest gap that the machine made while the foreground trained: in its own signs, or between samples."""
    own = [_length_s(pair) for pair in neighbours(evidence.foreground) if _inside_s(pair, window)]
    sampled_s = evidence.trace.longest_gap_s(*window) if evidence.trace.samples else 0.0
    return max(_SHORT_S, min(_BUSY_S, max([sampled_s, *own])))


def neighbours(member: Member) -> list[Stride]:
    """Neighbouring signs of one process, in order.

    A number means one process within one run only: in a PID namespace the next run has the same.
    """
    pairs: list[Stride] = []
    latest: dict[tuple[int, int], ProgressEvent] = {}
    for event in member.progress_events:
        key = (_run_of(member, event), event.pid)
        if key in latest:
            pairs.append((latest[key], event))
        latest[key] = event
    return pairs


def _run_of(member: Member, event: ProgressEvent) -> int:
    """The process run that had begun last when an event came."""
    return sum(run.started_s <= event.elapsed_s for run in member.process_runs)


def _parted(long: Iterable[Stride], short: Sequence[Stride], window: Interval) -> tuple[list[Stride], list[Stride]]:
    """Long strides that are usual for this training, and those that may be pauses."""
    usual: list[Stride] = []
    doubtful: list[Stride] = []
    by_kind: dict[object, list[Stride]] = defaultdict(list)
    for pair in long:
        by_kind[_kind(pair)].append(pair)
    num_short = sum(_inside_s(pair, window) > 0 for pair in short)
    for pairs in by_kind.values():
        outside_s = max((_length_s(pair) for pair in pairs if not _inside_s(pair, window)), default=0.0)
        inside = [pair for pair in pairs if _inside_s(pair, window)]
        often = len(inside) >= _HABIT and num_short >= _SHORT_PER_LONG * len(inside)
        habit_s = median(map(_length_s, inside)) if often else 0.0
        for pair in pairs:
            is_usual = _length_s(pair) <= _ALIKE * max(outside_s, habit_s)
            (usual if is_usual or not _inside_s(pair, window) else doubtful).append(pair)
    return usual, sorted(doubtful, key=lambda pair: pair[0].elapsed_s)


def _kind(pair: Stride) -> object:
    """From what to what: only strides of one kind are compared."""
    return tuple((event.kind, event.phase) for event in pair)


def _length_s(pair: Stride) -> float:
    return pair[1].elapsed_s - pair[0].elapsed_s


def _inside_s(pair: Stride, window: Interval) -> float:
    return max(0.0, min(pair[1].elapsed_s, window[1]) - max(pair[0].elapsed_s, window[0]))


def _is_step(pair: Stride) -> bool:
    """Yield the time from one step to the next of the same phase, by the training's own events."""
    earlier, event = pair
    return earlier.kind == event.kind == "step" and earlier.phase == event.phase and event.phase is not None


def _usual_step_s(pairs: Iterable[Stride]) -> float:
    lengths = [_length_s(pair) for pair in pairs if pair[0].kind == pair[1].kind and pair[1].kind in STEP_KINDS]
    return median(lengths) if lengths else 0.0
