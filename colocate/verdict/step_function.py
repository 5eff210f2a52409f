# SPDX-License-Identifier: Apache-2.0
"""The worst alignment of two memory traces: how much both could hold at once, had they met at their worst.

Pure: steps in, a sum and two instants out. Knows neither GPUs nor what a training is; `verdict.worst_case_peak` does.

A trace is a step function over a training's own time. One training begins ``shift`` seconds after the other did; not
every shift can occur, and not every instant of the one can meet every instant of the other:

- a shift lies between an earliest and a latest one;
- a training that loops repeats what it showed from some instant on, so what it showed before that happens only once.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, inf

Step = tuple[float, int]
"""From this second on, so many bytes."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The memory of one training over its own time, in order: none before the first step and from ``end_s`` on."""

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

    def coarse(self, most: int) -> "Steps":
        """Reduce to a number of steps that are nowhere below these: neighbours merge to the larger size."""
        found = self
        while len(found.steps) > most:
            pairs = zip(found.steps[::2], [*found.steps[1::2], found.steps[-1]], strict=False)
            found = Steps.of([(a[0], max(a[1], b[1])) for a, b in pairs], self.end_s)
        return found


@dataclass(frozen=True, slots=True)
class Alignment:
    """The most that both hold at once, and at which of their own instants; None for one that does not run then."""

    total_bytes: int
    front_s: float | None
    beside_s: float | None


def worst_alignment(
    front: Steps,
    beside: Steps,
    *,
    earliest_s: float = -inf,
    latest_s: float = inf,
    loops_from_s: float | None = None,
) -> Alignment:
    """The shift at which both together hold the most. Linear in the number of steps, but for unrolled loops.

    Args:
        front: a training that runs once.
        beside: the other one.
        earliest_s: the earliest instant of ``beside`` at which ``front`` may begin.
        latest_s: the latest such instant.
        loops_from_s: from here to its end ``beside`` repeats what it showed, for as long as somebody trains beside it;
            None for one that runs once too.

    Returns:
        The first of the worst: with the earliest instant of ``beside``. The instant of one that loops is that of its
        first round.
    """
    found = [Alignment(front.highest, _first(front), None), Alignment(beside.highest, None, _first(beside))]
    loops = loops_from_s is not None and loops_from_s < beside.end_s
    if loops and latest_s == inf:
        assert loops_from_s is not None
        rounds = beside.cut(loops_from_s, beside.end_s)
        # Whatever the shift, the loop comes round to each of its instants later.
        found.append(Alignment(front.highest + rounds.highest, _first(front), _first(rounds)))
        beside = beside.cut(-inf, loops_from_s)
    elif loops:
        assert loops_from_s is not None
        unrolled = _unrolled(beside, loops_from_s, latest_s + front.end_s)
        met = _met(list(front.spans()), list(unrolled.spans()), earliest_s, latest_s)
        return _best([*found, *(_in_first_round(one, beside, loops_from_s) for one in met)])
    return _best([*found, *_met(list(front.spans()), list(beside.spans()), earliest_s, latest_s)])


def _best(found: Iterable[Alignment]) -> Alignment:
    return max(found, key=lambda one: (one.total_bytes, one.front_s is not None and one.beside_s is not None))


def _first(steps: Steps) -> float | None:
    """Return when it first was at its highest."""
    most = steps.highest
    return next((start_s for start_s, size in steps.steps if size == most), None)


def _met(
    front: Sequence[tuple[float, float, int]],
    beside: Sequence[tuple[float, float, int]],
    earliest_s: float,
    latest_s: float,
) -> Iterator[Alignment]:
    """For every step of ``beside`` the largest step of ``front`` that it can meet.

    Step [t, t') of the front meets step [u, u') when some shift between the two is one that can occur: u - t' < latest
    and u' - t > earliest. Both ends of that range of steps move one way, so a sliding maximum finds all.
    """
    window: deque[tuple[float, float, int]] = deque()  # of falling size: what is smaller and ends earlier is of no use
    coming = 0
    for begun_s, ended_s, size in beside:
        while coming < len(front) and front[coming][0] < ended_s - earliest_s:
            while window and window[-1][2] < front[coming][2]:
                window.pop()
            window.append(front[coming])
            coming += 1
        while window and window[0][1] <= begun_s - latest_s:
            window.popleft()
        if window:
            start_s, end_s, most = window[0]
            yield Alignment(most + size, *_instants((start_s, end_s), (begun_s, ended_s), earliest_s, latest_s))


def _instants(
    front: tuple[float, float], beside: tuple[float, float], earliest_s: float, latest_s: float
) -> tuple[float, float]:
    """Two instants, one in each step, whose shift can occur: both as early as can be."""
    t, u = front[0], beside[0]
    return max(t, u - latest_s), max(u, t + earliest_s)


def _unrolled(beside: Steps, loops_from_s: float, until_s: float) -> Steps:
    """The same with the loop repeated up to an instant."""
    period_s = beside.end_s - loops_from_s
    times = max(0, ceil((until_s - beside.end_s) / period_s))
    rounds = beside.cut(loops_from_s, beside.end_s).steps
    more = ((start_s + number * period_s, size) for number in range(1, times + 1) for start_s, size in rounds)
    return Steps.of([*beside.steps, *more], beside.end_s + times * period_s)


def _in_first_round(one: Alignment, beside: Steps, loops_from_s: float) -> Alignment:
    if one.beside_s is None or one.beside_s < beside.end_s:
        return one
    return replace(one, beside_s=loops_from_s + (one.beside_s - loops_from_s) % (beside.end_s - loops_from_s))


def summed(traces: Iterable[Steps]) -> Steps:
    """Add steps on one clock."""
    traces = [trace for trace in traces if trace.steps]
    changes = heapq.merge(*(_changes(trace) for trace in traces))
    level, steps = 0, list[Step]()
    for time_s, change in changes:
        level += change
        steps.append((time_s, level))
    return Steps.of(steps, max((trace.end_s for trace in traces), default=0.0))


def _changes(trace: Steps) -> Iterator[tuple[float, int]]:
    edges = [*trace.steps, (trace.end_s, 0)]
    yield (edges[0][0], edges[0][1])
    yield from ((later[0], later[1] - earlier[1]) for earlier, later in pairwise(edges))
