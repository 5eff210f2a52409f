"""Which trainings should share a GPU, against every choice there is where that many can be tried."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.advice.forecast import Answer
from colocate.advice.packing import Load, PackingProblem, Pair, best_pairs, next_problem
from colocate.units import MIB
from colocate.verdict.predicted_peak import PeakRange

BASE, LIMIT = 200, 3000


def load(low: int, high: int, floor: int | None = None) -> Load:
    """Sizes in MiB."""
    peak = PeakRange(low * MIB, (low + high) // 2 * MIB, high * MIB)
    return Load(peak, (low if floor is None else floor) * MIB)


def problem(*loads: Load, **changes: object) -> PackingProblem:
    return replace(PackingProblem(loads, BASE * MIB, LIMIT * MIB), **changes)


@st.composite
def loads(draw: st.DrawFn, most: int = 8) -> tuple[Load, ...]:
    found = []
    for _ in range(draw(st.integers(1, most))):
        low = draw(st.integers(0, 2900))
        floor = draw(st.integers(0, low))
        found.append(load(low, low + draw(st.integers(0, 500)), draw(st.sampled_from([floor, low]))))
    return tuple(found)


def matchings(places: list[int], edges: set[Pair]) -> Iterator[tuple[Pair, ...]]:
    """Every set of pairs without a common member."""
    if not places:
        yield ()
        return
    first, *others = places
    yield from matchings(others, edges)
    for other in others:
        if (first, other) in edges:
            left = [place for place in others if place != other]
            yield from ((*more, (first, other)) for more in matchings(left, edges))


def every(asked: PackingProblem, *answers: Answer) -> list[tuple[Pair, ...]]:
    return list(matchings(list(range(len(asked.loads))), set(asked.pairs(*answers))))


def taken(asked: PackingProblem, pairs: tuple[Pair, ...] | list[Pair]) -> int:
    return sum((sum(asked.loads[place].peak.high_bytes // MIB for place in pair)) ** 2 for pair in pairs)


def sound(asked: PackingProblem, pairs: list[Pair]) -> None:
    members = [place for pair in pairs for place in pair]
    assert len(members) == len(set(members))
    assert all(asked.answer(pair) is Answer.FITS for pair in pairs)


def test_bounds_are_those_of_both_at_their_highest_and_of_one_beside_the_least_of_the_other() -> None:
    asked = problem(load(1500, 1600, floor=500), load(1800, 1900, floor=1000))

    peak = asked.peak((0, 1))
    assert (peak.low_bytes, peak.high_bytes) == ((BASE + 1500 + 1000) * MIB, (BASE + 3500) * MIB)
    assert asked.answer((0, 1)) is Answer.UNDECIDED
    assert replace(asked, known={(0, 1): True}).answer((0, 1)) is Answer.FITS
    assert replace(asked, limit_bytes=2700 * MIB).answer((0, 1)) is Answer.DOES_NOT_FIT
    assert replace(asked, limit_bytes=3701 * MIB).answer((0, 1)) is Answer.FITS


@given(loads())
@settings(deadline=None, max_examples=150)
def test_no_choice_gives_more_pairs_or_as_many_with_more_room(found: tuple[Load, ...]) -> None:
    asked = problem(*found)
    pairs = best_pairs(asked)
    sound(asked, pairs)

    assert (-len(pairs), taken(asked, pairs)) == min(
        (-len(one), taken(asked, one)) for one in every(asked, Answer.FITS)
    )


@given(loads(), st.data())
@settings(deadline=None, max_examples=150)
def test_the_same_with_pairs_that_were_measured(found: tuple[Load, ...], data: st.DataObject) -> None:
    asked = problem(*found)
    known = {pair: data.draw(st.booleans()) for pair in asked.pairs(Answer.UNDECIDED)}
    asked = replace(asked, known=known)
    pairs = best_pairs(asked)
    sound(asked, pairs)

    assert (-len(pairs), taken(asked, pairs)) == min(
        (-len(one), taken(asked, one)) for one in every(asked, Answer.FITS)
    )


@given(loads(7), st.data())
@settings(deadline=None, max_examples=100)
def test_where_all_speeds_are_known_the_most_time_is_saved(found: tuple[Load, ...], data: st.DataObject) -> None:
    asked = problem(*found)
    saved = {pair: float(data.draw(st.integers(-50, 100))) for pair in asked.pairs(Answer.FITS)}
    asked = replace(asked, saved_s=saved)
    pairs = best_pairs(asked)
    sound(asked, pairs)

    best = max(sum(saved[pair] for pair in one) for one in every(asked, Answer.FITS))
    assert sum(saved[pair] for pair in pairs) == pytest.approx(best, abs=0.01)
    assert all(saved[pair] > 0 for pair in pairs)


@given(loads(), st.data())
@settings(deadline=None, max_examples=150)
def test_few_measurements_give_what_all_of_them_would(found: tuple[Load, ...], data: st.DataObject) -> None:
    """What every open pair would say is decided beforehand; only some are asked."""
    asked = problem(*found)
    truth = {pair: data.draw(st.booleans()) for pair in asked.pairs(Answer.UNDECIDED)}
    everything, num = replace(asked, known=truth), 0
    while (pair := next_problem(asked)) is not None:
        assert asked.answer(pair) is Answer.UNDECIDED
        asked = replace(asked, known={**asked.known, pair: truth[pair]})
        num += 1

    assert len(best_pairs(asked)) == max(map(len, every(everything, Answer.FITS)))
    assert num <= len(truth)


def test_nothing_is_asked_that_cannot_change_the_choice() -> None:
    """The two large ones may fit together, but each surely fits with a small one."""
    large = [load(1300, 1600), load(1300, 1600)]
    small = [load(100, 200), load(100, 200)]

    assert next_problem(problem(*large, *small)) is None
    assert next_problem(problem(*large, small[0])) is None, "three trainings make one pair, whatever is measured"
    assert next_problem(problem(*large)) == (0, 1)
