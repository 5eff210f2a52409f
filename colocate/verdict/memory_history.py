# SPDX-License-Identifier: Apache-2.0
"""Combine what the processes of one training held over time. Pure.

Knows no GPU and no verdict; `colocate.verdict.worst_case_peak` makes use of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import dropwhile, pairwise

from colocate.verdict.evidence import Allocator, ProcessRun
from colocate.verdict.step_function import Step, Steps, summed

# An hour of lists of processes has 720; a record stays small whatever a training does.
MOST_STEPS = 512


def by_allocators(
    histories: Mapping[int, Sequence[Step]],
    allocators: Iterable[Allocator],
    process_runs: Sequence[ProcessRun],
    end_s: float,
) -> tuple[Step, ...]:
    """The sum over all processes, contexts of simulated ones included; empty where one of them did not tell it all.

    A process counts to the end of the process run that it began in: when it ended earlier, nobody tells. One whose
    maximum is not in its own history has lost a part of it, as when another program took its place.

    Args:
        histories: by pid, in seconds since the monitor's start.
        allocators: what the processes said last.
        process_runs: of the member, in order.
        end_s: of what is not known to have ended.
    """
    allocators = tuple(allocators)
    if not all(_is_whole(histories.get(one.pid, ()), one) for one in allocators):
        return ()
    contexts = {one.pid: one.context_bytes or 0 for one in allocators}
    traces = []
    for pid, history in histories.items():
        steps = [(at, size + contexts.get(pid, 0)) for at, size in dropwhile(lambda step: not step[1], history)]
        if steps:
            traces.append(Steps.of(steps, _end_s(steps[0][0], process_runs, end_s)))
    return _stored(summed(traces), end_s)


def _is_whole(history: Sequence[Step], allocator: Allocator) -> bool:
    return max((size for _, size in history), default=0) >= (allocator.max_reserved_bytes or 0)


def at_least(readings: Iterable[Sequence[Step]]) -> tuple[Step, ...]:
    """What some processes held together in any case: of each the smaller of two readings in a row, between the two.

    ``readings`` are those of one process each, with their instants.
    """
    traces = []
    for told in readings:
        steps = [(earlier[0], min(earlier[1], later[1])) for earlier, later in pairwise(told)]
        if steps:
            traces.append(Steps.of(steps, told[-1][0]))
    found = summed(traces)
    steps = list(found.steps)
    while len(steps) > MOST_STEPS:  # neighbours become one with the smaller size
        pairs = zip(steps[::2], [*steps[1::2], steps[-1]], strict=False)
        steps = [(first[0], min(first[1], second[1])) for first, second in pairs]
    return (*steps, (found.end_s, 0)) if steps else ()


def by_lists(listed: Sequence[Step], end_s: float) -> tuple[Step, ...]:
    """Return the driver's lists as steps, each until the next."""
    return _stored(Steps.of(listed, end_s), end_s) if any(size for _, size in listed) else ()


def _stored(found: Steps, end_s: float) -> tuple[Step, ...]:
    steps = found.coarse(MOST_STEPS)
    ending = ((steps.end_s, 0),) if steps.steps and steps.end_s < end_s else ()
    return (*steps.steps, *ending)


def _end_s(begun_s: float, process_runs: Sequence[ProcessRun], end_s: float) -> float:
    """Return when the process run ended in which something began."""
    ends = [
        process_run.exit.ended_s
        for process_run in process_runs
        if process_run.started_s <= begun_s and process_run.exit is not None
    ]
    later = [end for end in ends if end > begun_s]
    return min(later, default=end_s)
