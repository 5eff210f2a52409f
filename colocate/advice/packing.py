# SPDX-License-Identifier: Apache-2.0
"""Decide which trainings should share a GPU, by optimal matching.

Pure: sizes as intervals in, pairs out. Knows neither programs nor GPUs; `colocate.cli.pack` asks.

What two need together has bounds: at most both upper ends at once, at least the lower end of one on top of what the
other never goes below. Below the limit with the upper bound a pair surely fits, at or over it with the lower one it
surely does not, and everything between is undecided: such a pair is open, and only a measurement decides it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

from colocate.advice.forecast import Answer, answer_of
from colocate.units import MIB
from colocate.verdict import PeakRange

# A matching of more trainings than this takes a second; then the open pair closest to the limit is asked next.
MOST_FOR_COMPARING = 60

# Of how many open pairs it is found out what their answer would change.
MOST_CANDIDATES = 6

Pair = tuple[int, int]
"""Places of two trainings, the smaller first."""


@dataclass(frozen=True, slots=True)
class Load:
    """The memory of one training alone: its peak, and the least while it trains.

    ``floor_bytes`` is the lower end of the peak where nothing is known of the time: then peaks are taken to meet,
    sooner or later.
    """

    peak: PeakRange
    floor_bytes: int


@dataclass(frozen=True)
class PackingProblem:
    """Some trainings and one kind of GPU, with what is known of them.

    Args:
        loads: the trainings.
        base_bytes: what the GPU holds without them.
        limit_bytes: what its use must stay below.
        known: pairs that were measured, and whether they fitted.
        saved_s: pairs whose speeds are known, and the seconds that sharing saves; pairs that save none do not share.
    """

    loads: tuple[Load, ...]
    base_bytes: int
    limit_bytes: int
    known: Mapping[Pair, bool] = field(default_factory=dict)
    saved_s: Mapping[Pair, float] = field(default_factory=dict)

    def peak(self, places: Iterable[int]) -> PeakRange:
        """The GPU's peak with these together on it."""
        loads, base = [self.loads[place] for place in places], self.base_bytes
        floors = sum(load.floor_bytes for load in loads)
        low = max((load.peak.low_bytes - load.floor_bytes + floors for load in loads), default=0)
        expected = sum(load.peak.expected_bytes for load in loads)
        return PeakRange(base + low, base + expected, base + sum(load.peak.high_bytes for load in loads))

    def by_bounds(self, places: Iterable[int]) -> Answer:
        """Say whether these trainings fit together, by their bounds alone."""
        return answer_of(self.peak(places), self.limit_bytes)

    def answer(self, pair: Pair) -> Answer:
        """Say whether a pair fits: as measured, else by its bounds."""
        if pair in self.known:
            return Answer.FITS if self.known[pair] else Answer.DOES_NOT_FIT
        return self.by_bounds(pair)

    @cached_property
    def answers(self) -> dict[Pair, Answer]:
        """Every pair of trainings of which each fits alone."""
        solo_run = [place for place in range(len(self.loads)) if self.by_bounds([place]) is not Answer.DOES_NOT_FIT]
        return {pair: self.answer(pair) for pair in combinations(solo_run, 2)}

    def pairs(self, *answers: Answer) -> list[Pair]:
        """The pairs of which one of these is known."""
        return [pair for pair, answer in self.answers.items() if answer in answers]

    @property
    def room_bytes(self) -> int:
        """Return the memory that trainings together must stay below."""
        return self.limit_bytes - self.base_bytes

    def high_bytes(self, place: int) -> int:
        """The upper end of a training's peak."""
        return self.loads[place].peak.high_bytes

    @property
    def by_time(self) -> bool:
        """The speeds of all pairs that fit are known, so that time saved can be counted."""
        found = self.pairs(Answer.FITS)
        return bool(found) and all(pair in self.saved_s for pair in found)


def best_pairs(problem: PackingProblem) -> list[Pair]:
    """The pairs that should share, of those that surely fit: no other choice is better.

    Better is what saves more time where the speeds of all such pairs are known; else more pairs, and of as many pairs
    those that leave the most room where it is scarce (the sum of the squares of what they take is the smallest).
    """
    sharing = [pair for pair in problem.pairs(Answer.FITS) if problem.saved_s.get(pair, 1.0) > 0]
    if problem.by_time:
        return _heaviest({pair: max(1, round(problem.saved_s[pair] * 1000)) for pair in sharing}, most_pairs=False)
    most = len(problem.loads)  # of choices that are as good otherwise, the one with more pairs known to save time
    weights = {pair: _room(problem, pair) * most + (pair in problem.saved_s) for pair in sharing}
    return _heaviest(weights, most_pairs=True)


def next_problem(problem: PackingProblem) -> Pair | None:
    """The open pair whose answer can change the choice the most; None when none can give more pairs any more.

    If even with all open pairs there are no more pairs than without, measuring is over. Else the hopeful choice, which
    takes as few open pairs as it can, says which of them matter. Of these the one counts without which the hopeful
    choice would lose the most, and of equals the one closest to the limit.
    """
    sure = best_pairs(problem) if not problem.by_time else problem.pairs(Answer.FITS)
    hoped = _hoped(problem)
    if not problem.by_time and len(hoped) <= len(sure):
        return None
    closest = sorted(
        (pair for pair in hoped if problem.answers[pair] is Answer.UNDECIDED),
        key=lambda pair: _distance(problem, pair),
    )
    if not closest or len(problem.loads) > MOST_FOR_COMPARING:
        return closest[0] if closest else None
    return max(
        closest[:MOST_CANDIDATES],
        key=lambda pair: (len(hoped) - len(_hoped(problem, without=pair)), -_distance(problem, pair)),
    )


def _hoped(problem: PackingProblem, without: Pair | None = None) -> list[Pair]:
    """The choice if every open pair fitted, with as few of them as can be."""
    most = len(problem.loads) * 4 * max(1, problem.limit_bytes // MIB) ** 2
    weights = {
        pair: _room(problem, pair) + (most if problem.answers[pair] is Answer.FITS else 0)
        for pair in problem.pairs(Answer.FITS, Answer.UNDECIDED)
        if pair != without and problem.saved_s.get(pair, 1.0) > 0
    }
    return _heaviest(weights, most_pairs=True)


def _distance(problem: PackingProblem, pair: Pair) -> int:
    return abs(problem.peak(pair).expected_bytes - problem.limit_bytes)


def _room(problem: PackingProblem, pair: Pair) -> int:
    """Large where a pair takes little: its square counts against it, so two halves are better than much and little."""
    taken = sum(map(problem.high_bytes, pair)) // MIB
    return (2 * max(load.peak.high_bytes for load in problem.loads) // MIB) ** 2 - taken**2 + 1


def _heaviest(weights: Mapping[Pair, int], *, most_pairs: bool) -> list[Pair]:
    import networkx  # a fifth of the time to collect a plan, for one command

    graph = networkx.Graph()
    graph.add_weighted_edges_from((*pair, weight) for pair, weight in sorted(weights.items()))
    found = networkx.max_weight_matching(graph, maxcardinality=most_pairs)
    return sorted((min(pair), max(pair)) for pair in found)
