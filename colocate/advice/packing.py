# SPDX-License-Identifier: Apache-2.0
"""Decide which trainings should share a GPU: pairs by optimal matching, or several per GPU by bin packing.

Pure: sizes as intervals in, pairs and bins out. Knows neither programs nor GPUs; `colocate.cli.pack` asks.

What two need together has bounds: at most both upper ends at once, at least the lower end of one on top of what the
other never goes below. Below the limit with the upper bound a pair surely fits, at or over it with the lower one it
surely does not, and everything between is undecided: such a pair is open, and only a measurement decides it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from math import ceil
from typing import TypeVar

from colocate.advice.forecast import Answer, answer_of
from colocate.units import MIB
from colocate.verdict import PeakRange

# Exact bin packing tries every set of items that may share a GPU: three a GPU and twelve items take 0.1 s.
MOST_FOR_EXACT = 12

# More trainings than this are matched on the edges that matter first; see `_matched`.
MOST_FOR_ALL_EDGES = 60
NEAR = 4

# Of how many open pairs it is found out what their answer would change.
MOST_CANDIDATES = 6

Pair = tuple[int, int]
"""Places of two trainings, the smaller first."""

T = TypeVar("T")


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


# --- pairs ------------------------------------------------------------------------------------------------------------


def best_pairs(problem: PackingProblem) -> list[Pair]:
    """The pairs that should share, of those that surely fit: no other choice is better.

    Better is what saves more time where the speeds of all such pairs are known; else more pairs, and of as many pairs
    those that leave the most room where it is scarce (the sum of the squares of what they take is the smallest). Of
    more than sixty trainings of which pairs were measured, the number of pairs is the best and the room nearly so.
    """
    sharing = [pair for pair in problem.pairs(Answer.FITS) if problem.saved_s.get(pair, 1.0) > 0]
    if problem.by_time:
        return _heaviest({pair: max(1, round(problem.saved_s[pair] * 1000)) for pair in sharing}, most_pairs=False)
    if not problem.known and not problem.saved_s:
        return _nested([load.peak.high_bytes for load in problem.loads], problem.room_bytes)
    most = len(problem.loads)  # of choices that are as good otherwise, the one with more pairs known to save time
    return _matched(problem, {pair: _room(problem, pair) * most + (pair in problem.saved_s) for pair in sharing})


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
    if not closest or len(problem.loads) > MOST_FOR_ALL_EDGES:
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
    return _matched(problem, weights)


def _distance(problem: PackingProblem, pair: Pair) -> int:
    return abs(problem.peak(pair).expected_bytes - problem.limit_bytes)


def _room(problem: PackingProblem, pair: Pair) -> int:
    """Large where a pair takes little: its square counts against it, so two halves are better than much and little."""
    taken = sum(map(problem.high_bytes, pair)) // MIB
    return (2 * max(load.peak.high_bytes for load in problem.loads) // MIB) ** 2 - taken**2 + 1


def _nested(sizes: Sequence[int], room: int) -> list[Pair]:
    """The most pairs of sizes below a room: the smallest with the largest of as many as can be paired.

    Whether a pair fits depends on nothing but its sum, so if any 2k sizes can be paired, the 2k smallest can, and so
    can the smallest of them with the largest, the second with the second largest, and so on.
    """
    order = sorted((place for place, size in enumerate(sizes) if size < room), key=lambda place: sizes[place])
    for count in range(len(order) // 2, 0, -1):
        chosen = order[: 2 * count]
        if all(sizes[chosen[k]] + sizes[chosen[-1 - k]] < room for k in range(count)):
            return [_pair(chosen[k], chosen[-1 - k]) for k in range(count)]
    return []


def _matched(problem: PackingProblem, weights: Mapping[Pair, int]) -> list[Pair]:
    """Match as many pairs as possible, and of these matchings the heaviest.

    Of many trainings first on a few edges each, those to partners about as much larger as it is smaller; if that gives
    as many pairs as sums alone would allow, it is enough, else all edges are taken.
    """
    if len(problem.loads) > MOST_FOR_ALL_EDGES:
        few = _heaviest({pair: weights[pair] for pair in _likely(problem, weights)}, most_pairs=True)
        if len(few) >= _most_pairs(problem, weights):
            return few
    return _heaviest(weights, most_pairs=True)


def _most_pairs(problem: PackingProblem, weights: Mapping[Pair, int]) -> int:
    """No choice has more pairs: half of the trainings that have a partner at all, or what sums alone would allow."""
    partners = {place for pair in weights for place in pair}
    room = max((sum(_lowest(problem, place) for place in pair) for pair in weights), default=0) + 1
    return min(len(partners) // 2, len(_nested([_lowest(problem, place) for place in sorted(partners)], room)))


def _lowest(problem: PackingProblem, place: int) -> int:
    return problem.loads[place].floor_bytes


def _likely(problem: PackingProblem, weights: Mapping[Pair, int]) -> Iterator[Pair]:
    """The edges to the partners near the mirrored place in the order of sizes, and those that were measured."""
    yield from (pair for pair, fitted in problem.known.items() if fitted and pair in weights)
    places = sorted({place for pair in weights for place in pair}, key=problem.high_bytes)
    for count in {len(places), 2 * len(_nested(list(map(problem.high_bytes, places)), problem.room_bytes))}:
        for rank, place in enumerate(places[:count]):
            mirrored = count - 1 - rank
            for other in places[max(0, mirrored - NEAR) : mirrored + NEAR + 1]:
                if other != place and _pair(place, other) in weights:
                    yield _pair(place, other)


def _heaviest(weights: Mapping[Pair, int], *, most_pairs: bool) -> list[Pair]:
    import networkx  # a fifth of the time to collect a plan, for one command

    graph = networkx.Graph()
    graph.add_weighted_edges_from((*pair, weight) for pair, weight in sorted(weights.items()))
    found = networkx.max_weight_matching(graph, maxcardinality=most_pairs)
    return sorted(_pair(a, b) for a, b in found)


def _pair(a: int, b: int) -> Pair:
    return (a, b) if a < b else (b, a)


# --- several a GPU ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Packing:
    """Trainings by GPU, and how few GPUs would do at the least: where both agree, no packing is better."""

    bins: tuple[tuple[int, ...], ...]
    at_least: int

    @property
    def optimal(self) -> bool:
        """No other packing takes fewer GPUs."""
        return len(self.bins) == self.at_least


def packed(problem: PackingProblem, per_gpu: int) -> Packing:
    """GPUs that surely hold their trainings, at most so many each; one that does not surely fit alone is left out.

    Exact for few trainings. Of many, the largest first, each where it leaves the least room; the bound is proven:
    neither sizes nor numbers allow fewer GPUs.
    """
    sizes = {place: load.peak.high_bytes for place, load in enumerate(problem.loads)}
    room = problem.room_bytes
    places = [place for place in sizes if sizes[place] < room]
    if len(places) <= MOST_FOR_EXACT:
        bins = _fewest_bins(places, sizes, room, per_gpu)
        return Packing(bins, len(bins))
    bins = _best_fit(places, sizes, room, per_gpu)
    return Packing(bins, at_least([sizes[place] for place in places], room, per_gpu))


def _best_fit(places: Sequence[int], sizes: Mapping[int, int], room: int, per_gpu: int) -> tuple[tuple[int, ...], ...]:
    bins: list[list[int]] = []
    used: list[int] = []
    for place in sorted(places, key=lambda place: -sizes[place]):
        free = [number for number, own in enumerate(bins) if len(own) < per_gpu and used[number] + sizes[place] < room]
        number = max(free, key=lambda number: used[number], default=len(bins))
        if number == len(bins):
            bins.append([])
            used.append(0)
        bins[number].append(place)
        used[number] += sizes[place]
    return tuple(map(tuple, bins))


def _fewest_bins(
    places: Sequence[int], sizes: Mapping[int, int], room: int, per_gpu: int
) -> tuple[tuple[int, ...], ...]:
    """Every way to take the first training that is left together with others, the best remembered for what is left."""
    remembered: dict[frozenset[int], tuple[tuple[int, ...], ...]] = {frozenset(): ()}

    def fewest(left: frozenset[int]) -> tuple[tuple[int, ...], ...]:
        if left not in remembered:
            first, *others = sorted(left, key=lambda place: -sizes[place])
            together = [
                (first, *more)
                for count in range(per_gpu)
                for more in combinations(others, count)
                if sizes[first] + sum(sizes[place] for place in more) < room
            ]
            remembered[left] = min(((one, *fewest(left - set(one))) for one in together), key=len)
        return remembered[left]

    return fewest(frozenset(places))


def at_least(sizes: Sequence[int], room: int, per_gpu: int) -> int:
    """No packing takes fewer GPUs: not by number, not by the sum, and not by how many are too large to share.

    Of sizes of k and more, no GPU holds more than k goes into its room. What is too large to share is Martello and
    Toth's bound: for every size k, what is larger than room - k shares with nothing from k on, what is larger than half
    the room is alone among its like, and the rest from k on must find room beside those.
    """
    best = ceil(len(sizes) / per_gpu)
    room -= 1  # a GPU's use stays below its limit
    for k in {size for size in sizes if size * per_gpu > room}:
        best = max(best, ceil(sum(size >= k for size in sizes) / (room // k)))
    for k in {0, *(size for size in sizes if 2 * size <= room)}:
        solo_run = [size for size in sizes if size > room - k]
        halves = [size for size in sizes if room / 2 < size <= room - k]
        small = sum(size for size in sizes if k <= size <= room / 2)
        spare = len(halves) * room - sum(halves)
        best = max(best, len(solo_run) + len(halves) + max(0, ceil((small - spare) / room)))
    return best
