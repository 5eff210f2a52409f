"""`colocate.advice.bisection`: bisection that believes no answer it did not get."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import settings as of_test
from hypothesis import strategies as st

from colocate.advice.bisection import HOPELESS, Search
from colocate.advice.forecast import Answer

LAST = 60


def searched(search: Search, answer: Callable[[int], Answer]) -> Search:
    """The search at its end, neighbours asked too."""
    for _ in range(10 * LAST):
        place = search.next()
        places = [place] if place is not None else search.neighbours()
        if not places:
            return search
        for asked in places:
            assert asked not in search.known, "asked twice"
            search.tell(asked, answer(asked))
    raise AssertionError("the search does not end")


def steady(fits_to: int, refused_from: int) -> Callable[[int], Answer]:
    def answer(place: int) -> Answer:
        if place <= fits_to:
            return Answer.FITS
        return Answer.DOES_NOT_FIT if place >= refused_from else Answer.UNDECIDED

    return answer


places = st.integers(0, LAST)


@of_test(deadline=None)
@given(st.integers(-1, LAST), st.integers(0, LAST + 1), places, st.integers(1, LAST), st.integers(2, 5))
def test_it_finds_what_asking_for_every_value_finds(
    fits_to: int, width: int, first: int, stride: int, growth: int
) -> None:
    refused_from = min(fits_to + 1 + width, LAST + 1)
    answer = steady(fits_to, refused_from)

    search = searched(Search(first, LAST, stride, growth), answer)

    every = [answer(place) for place in range(LAST + 1)]
    assert search.good == max((p for p in range(LAST + 1) if every[p] is Answer.FITS), default=None)
    assert search.bad == min((p for p in range(LAST + 1) if every[p] is Answer.DOES_NOT_FIT), default=None)
    undecided = [p for p in range(LAST + 1) if every[p] is Answer.UNDECIDED]
    assert bool(search.open) == bool(undecided)
    assert not undecided or (search.open[0], search.open[-1]) == (undecided[0], undecided[-1])
    assert not search.surprises


@of_test(deadline=None)
@given(st.lists(st.sampled_from(list(Answer)), min_size=1, max_size=20), st.data())
def test_whatever_the_answers_it_ends_and_claims_only_what_it_was_told(
    answers: list[Answer], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(answers) - 1))

    search = searched(Search(first, len(answers) - 1, data.draw(st.integers(1, 20))), answers.__getitem__)

    good, bad = search.good, search.bad
    assert good is None or answers[good] is Answer.FITS
    assert bad is None or answers[bad] is Answer.DOES_NOT_FIT
    assert good is None or bad is None or good < bad
    assert all(answers[place] in (Answer.UNDECIDED, Answer.UNKNOWN) for place in search.open)
    for place, below in search.surprises:
        assert (answers[place], answers[below]) == (Answer.FITS, Answer.DOES_NOT_FIT)
        assert below < place


def test_few_trials_are_needed_where_the_start_is_near() -> None:
    search = searched(Search(40_000, 65_535, 40_000 // 16), steady(41_000, 41_001))
    assert (search.good, search.bad) == (41_000, 41_001)
    assert len(search.known) <= 18


def test_an_undecided_value_is_gone_around_on_both_sides() -> None:
    blind = {24, 32}
    search = searched(Search(8, LAST, 8), lambda p: Answer.UNKNOWN if p in blind else steady(33, 34)(p))
    assert blind <= set(search.known), "the value used to be one that is never asked for"
    assert (search.good, search.bad, search.open) == (33, 34, ())

    search = searched(Search(8, LAST, 8), lambda p: Answer.UNKNOWN if 20 <= p <= 40 else steady(33, 34)(p))
    assert (search.good, search.bad, search.open[0], search.open[-1]) == (19, 41, 20, 40)


def test_memory_that_does_not_grow_steadily_is_told() -> None:
    """The value above the refusal is asked for, and what lies above a refusal is never the answer."""
    search = searched(Search(8, LAST, 8), lambda p: Answer.DOES_NOT_FIT if p == 24 else steady(30, 31)(p))

    assert (search.good, search.bad, search.surprises) == (23, 24, ((25, 24),))


def test_nothing_but_unknown_answers_is_hopeless() -> None:
    search = Search(4, LAST)
    for place in range(HOPELESS):
        assert not search.is_hopeless
        search.tell(place, Answer.UNKNOWN)
    assert search.is_hopeless
    search.tell(9, Answer.FITS)
    assert not search.is_hopeless


@pytest.mark.parametrize(("first", "expected"), [(0, [0, 1, 2, 4, 8]), (8, [8, 16, 24, 40]), (32, [32, 60])])
def test_the_distance_from_the_start_doubles(first: int, expected: list[int]) -> None:
    search, asked = Search(first, LAST, max(1, first)), []
    for _ in expected:
        place = search.next()
        assert place is not None
        asked.append(place)
        search.tell(place, Answer.FITS)
    assert asked == expected
