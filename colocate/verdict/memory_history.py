# SPDX-License-Identifier: Apache-2.0
"""What trainings held over time, as step functions, and what the processes of one training held together. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, dropwhile, pairwise
from math import inf

from colocate.verdict.evidence import Allocator, ProcessRun

# An hour of lists of processes has 720; a record stays small whatever a training does.
MOST_STEPS = 512

Step = tuple[float, int]
"""From this second on, so many bytes."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The memory of one training over time, in order: none before the first step and from ``end_s`` on."""

    steps: tuple[Step, ...]
    end_s: float

    @classmethod
    def of(cls, steps: Iterable[Step], end_s: float) -> "Steps":
        """The same function with as few steps as it has levels; of several steps at one instant the last counts."""
        kept: list[Step] = []
        for start_s, size in steps:
            if start_s >= end_s:
                break
            if kept and kept[-1][0] == start_s:
                kept.pop()
            if not kept or kept[-1][1] != size:
                kept.append((start_s, size))
        return cls(tuple(kept), end_s)

    @property
    def highest(self) -> int:
        """The most it ever held."""
        return max((size for _, size in self.steps), default=0)

    def spans(self) -> Iterator[tuple[float, float, int]]:
        """Start, end and size of every step."""
        ends = [start_s for start_s, _ in self.steps[1:]] + [self.end_s]
        return ((start_s, end_s, size) for (start_s, size), end_s in zip(self.steps, ends, strict=False))

    def cut(self, start_s: float, end_s: float) -> "Steps":
        """Return the steps between two instants."""
        inside = ((max(begun, start_s), size) for begun, ended, size in self.spans() if ended > start_s)
        return Steps.of(inside, min(end_s, self.end_s))

    def coarse(self, most: int, pick: Callable[[int, int], int] = max) -> "Steps":
        """Reduce to a number of steps: neighbours become one, of the larger size unless ``pick`` says otherwise."""
        found = self
        while len(found.steps) > most:
            pairs = zip(found.steps[::2], [*found.steps[1::2], found.steps[-1]], strict=False)
            found = Steps.of([(a[0], pick(a[1], b[1])) for a, b in pairs], self.end_s)
        return found


def summed(traces: Iterable[Steps]) -> Steps:
    """Add steps on one clock."""
    traces = [trace for trace in traces if trace.steps]
    changes = sorted(
        (later[0], later[1] - earlier[1])
        for trace in traces
        for earlier, later in pairwise([(-inf, 0), *trace.steps, (trace.end_s, 0)])
    )
    levels = accumulate(change for _, change in changes)
    end_s = max((trace.end_s for trace in traces), default=0.0)
    return Steps.of(((at, level) for (at, _), level in zip(changes, levels, strict=True)), end_s)


def by_allocators(
    histories: Mapping[int, Sequence[Step]],
    allocators: Sequence[Allocator],
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
    for one in allocators:
        if max((size for _, size in histories.get(one.pid, ())), default=0) < (one.max_reserved_bytes or 0):
            return ()
    contexts = {one.pid: one.context_bytes or 0 for one in allocators}
    traces = []
    for pid, history in histories.items():
        steps = [(at, size + contexts.get(pid, 0)) for at, size in dropwhile(lambda step: not step[1], history)]
        if steps:
            begun_s = steps[0][0]
            ends = [ended for started, ended in (run.span for run in process_runs) if started <= begun_s < ended]
            traces.append(Steps.of(steps, min([end_s, *ends])))
    return _stored(summed(traces), end_s)


def at_least(readings: Iterable[Sequence[Step]]) -> tuple[Step, ...]:
    """What some processes held together in any case: of each the smaller of two readings in a row, between the two.

    ``readings`` are those of one process each, with their instants.
    """
    found = summed(
        Steps.of([(earlier[0], min(earlier[1], later[1])) for earlier, later in pairwise(told)], told[-1][0])
        for told in readings
        if told
    )
    return (*found.coarse(MOST_STEPS, min).steps, (found.end_s, 0)) if found.steps else ()


def by_lists(listed: Sequence[Step], end_s: float) -> tuple[Step, ...]:
    """Return the driver's lists as steps, each until the next."""
    return _stored(Steps.of(listed, end_s), end_s) if any(size for _, size in listed) else ()


def _stored(found: Steps, end_s: float) -> tuple[Step, ...]:
    steps = found.coarse(MOST_STEPS)
    ending = ((steps.end_s, 0),) if steps.steps and steps.end_s < end_s else ()
    return (*steps.steps, *ending)
