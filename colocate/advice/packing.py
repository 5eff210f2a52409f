# SPDX-License-Identifier: Apache-2.0
"""Decide which trainings should share a GPU, by optimal matching.

Pure: peaks as ranges in, pairs out. Knows neither programs nor GPUs; `colocate.cli.pack` asks.

Below the limit with the sum of both upper ends a pair surely fits, at or over it with the sum of both lower ends it
surely does not, and everything between is undecided: only a measurement decides such a pair.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

from colocate.advice.forecast import Answer, answer_of
from colocate.units import MIB
from colocate.verdict import PeakRange

Pair = tuple[int, int]
"""Places of two trainings, the smaller first."""


@dataclass(frozen=True)
class PackingProblem:
    """Some trainings and one kind of GPU, with what is known of them.

    Args:
        peaks: Those of the trainings alone.
        base_bytes: What the GPU holds without them.
        limit_bytes: What its use must stay below.
        known: Pairs that were measured, and whether they fitted.
    """

    peaks: tuple[PeakRange, ...]
    base_bytes: int
    limit_bytes: int
    known: Mapping[Pair, bool] = field(default_factory=dict)

    def peak(self, places: Iterable[int]) -> PeakRange:
        """The GPU's peak with these together on it."""
        base = PeakRange(self.base_bytes, self.base_bytes, self.base_bytes)
        return sum((self.peaks[place] for place in places), start=base)

    def by_bounds(self, places: Iterable[int]) -> Answer:
        """Say whether these trainings fit together, by their bounds alone."""
        return answer_of(self.peak(places), self.limit_bytes)

    @cached_property
    def answers(self) -> dict[Pair, Answer]:
        """Whether each pair fits, as measured or else by its bounds, of trainings of which each fits alone."""
        alone = [place for place in range(len(self.peaks)) if self.by_bounds([place]) is not Answer.DOES_NOT_FIT]
        measured = {True: Answer.FITS, False: Answer.DOES_NOT_FIT}
        return {
            pair: measured[self.known[pair]] if pair in self.known else self.by_bounds(pair)
            for pair in combinations(alone, 2)
        }


def best_pairs(problem: PackingProblem, *answers: Answer) -> list[Pair]:
    """The pairs that should share, of those with one of these answers: no other choice is better.

    Better is more pairs, and of as many pairs those that leave the most room where it is scarce (the sum of the
    squares of what they take is the smallest).
    """
    import networkx  # a fifth of the time to collect a plan, for one command

    taken = {
        pair: sum(problem.peaks[place].high_bytes // MIB for place in pair)
        for pair, answer in problem.answers.items()
        if answer in answers
    }
    graph = networkx.Graph()
    graph.add_weighted_edges_from((*pair, max(taken.values()) ** 2 - size**2 + 1) for pair, size in taken.items())
    found = networkx.max_weight_matching(graph, maxcardinality=True)
    return sorted((min(pair), max(pair)) for pair in found)
