"""`colocate.verdict`: steps of memory, and the worst meeting of two traces against every shift at every instant."""

from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.verdict.memory_history import Steps, summed
from colocate.verdict.worst_case_peak import Alignment, worst_alignment

# Whole seconds, so that quarters and halves of one reach every pair of steps that can meet.
SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=7)


def steps(sizes: list[int]) -> Steps:
    """One second of every size."""
    return Steps.of(enumerate(sizes), len(sizes))


def held(steps: Steps, time_s: float) -> int:
    """What it held at an instant."""
    return next((size for start_s, end_s, size in steps.spans() if start_s <= time_s < end_s), 0)


def looped(sizes: list[int], loops_from: int, rounds: int = 12) -> list[int]:
    return sizes + sizes[loops_from:] * rounds


def by_hand(front: list[int], beside: list[int], earliest: int, latest: int) -> int:
    """Every shift by halves of a second, every instant by quarters."""

    def at(sizes: list[int], time_s: float) -> int:
        return sizes[int(time_s // 1)] if 0 <= time_s < len(sizes) else 0

    highest = max(max(front), max(beside))
    for shift in range(2 * earliest, 2 * latest + 1):
        for quarter in range(4 * len(front)):
            highest = max(highest, at(front, quarter / 4) + at(beside, quarter / 4 + shift / 2))
    return highest


@given(front=SIZES, beside=SIZES, earliest=st.integers(-8, 8))
@settings(deadline=None, max_examples=400)
def test_no_shift_that_can_occur_is_worse(front: list[int], beside: list[int], earliest: int) -> None:
    found = worst_alignment(steps(front), steps(beside), earliest_s=earliest)

    assert found.total_bytes == by_hand(front, beside, earliest, max(earliest, len(beside)))
    occurs(found, steps(front), steps(beside), earliest)


@given(front=SIZES, beside=SIZES, earliest=st.integers(0, 6), data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_loop_is_met_in_every_round(front: list[int], beside: list[int], earliest: int, data) -> None:
    loops_from = data.draw(st.integers(0, len(beside) - 1))
    long = looped(beside, loops_from)

    every = worst_alignment(steps(front), steps(beside), earliest_s=earliest, loops_from_s=loops_from)

    # Seven seconds of a loop are a whole round of it, wherever they begin; a late start is a start in such a round.
    assert every.total_bytes == by_hand(front, long, earliest, max(earliest, loops_from) + 14)
    assert every.beside_s is None or every.beside_s < len(beside)


def occurs(found: Alignment, front: Steps, beside: Steps, earliest: float) -> None:
    """The two instants that it names hold what it says, and their shift can occur."""
    at_front = 0 if found.front_s is None else held(front, found.front_s)
    at_beside = 0 if found.beside_s is None else held(beside, found.beside_s)
    assert at_front + at_beside == found.total_bytes
    if found.front_s is not None and found.beside_s is not None:
        assert earliest <= found.beside_s - found.front_s


def test_what_a_background_shows_once_meets_only_a_foreground_that_is_that_far() -> None:
    """A spike of the background 3 s after it was ready cannot meet the evaluation of a foreground after 20 s."""
    background = Steps.of([(0, 1000), (8, 4000), (9, 1500)], 40)
    foreground = Steps.of([(0, 1000), (20, 3000)], 25)

    found = worst_alignment(foreground, background, earliest_s=5, loops_from_s=10)

    assert found == Alignment(5000, front_s=0, beside_s=8)
    late = worst_alignment(foreground, background, earliest_s=-20, loops_from_s=10)
    assert late == Alignment(7000, front_s=20, beside_s=8)


@given(sizes=st.lists(st.integers(0, 5), max_size=40), most=st.integers(1, 8))
@settings(deadline=None)
def test_fewer_steps_are_nowhere_lower(sizes: list[int], most: int) -> None:
    exact = steps(sizes)
    coarse = exact.coarse(most)

    assert len(coarse.steps) <= most
    assert all(held(coarse, time_s) >= size for time_s, size in enumerate(sizes))
    assert coarse.highest == exact.highest


@given(several=st.lists(st.tuples(st.integers(0, 5), SIZES), max_size=4))
@settings(deadline=None)
def test_sums_are_those_of_every_instant(several: list[tuple[int, list[int]]]) -> None:
    traces = [
        Steps.of(((start + at, size) for at, size in enumerate(sizes)), start + len(sizes)) for start, sizes in several
    ]
    together = summed(traces)

    assert all(held(together, time_s) == sum(held(trace, time_s) for trace in traces) for time_s in range(14))
