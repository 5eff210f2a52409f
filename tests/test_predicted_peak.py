"""The interval of a predicted peak and the answers that follow from it."""

from dataclasses import replace

import pytest
from builders import foreground, simulated

from colocate.advice.forecast import Answer, Forecast
from colocate.harness.simulation import NOTHING, Parts, SimulatedRun
from colocate.units import MIB
from colocate.verdict.predicted_peak import (
    CACHED_LESS,
    CACHED_MORE,
    LESS,
    MORE,
    MORE_WITHOUT_BOUND,
    PeakRange,
    allocator_range,
    member_range,
)


def allocator(**changes):
    known = {"context_range_bytes": (244 * MIB, 494 * MIB), "max_reserved_bound_bytes": 1300 * MIB}
    known["max_allocated_bytes"] = 800 * MIB
    return replace(simulated(1000), context_bytes=344 * MIB, **{**known, **changes})


# What 200 cached MiB of 1000 leave at least.
LEAST = (1 - CACHED_LESS * 0.2) * (1 - LESS) * 1000 * MIB
CACHED = CACHED_MORE * 0.2


def test_the_interval_ends_with_the_workspaces_and_the_context_that_there_could_be() -> None:
    assert allocator_range(allocator()) == PeakRange(
        round(LEAST) + 244 * MIB,
        1344 * MIB,
        round(1300 * MIB * (1 + MORE + CACHED)) + 494 * MIB,
    )
    member = foreground(allocators=(allocator(), replace(allocator(), max_reserved_bytes=400 * MIB)))
    assert member_range(member) == allocator_range(allocator()), "a training counts with its largest life"
    below = allocator_range(allocator(max_reserved_bound_bytes=900 * MIB))
    assert below is not None
    fewer = "other requests can lead to less fragmentation: a bound below the peak itself is none"
    assert below.high_bytes == round(1000 * MIB * (1 + MORE + CACHED)) + 494 * MIB, fewer


def test_the_range_is_as_wide_as_what_the_program_does_is_unknown() -> None:
    """Every program used to have the same share below and above."""

    def ends(**changes) -> tuple[int, int]:
        range_ = allocator_range(allocator(max_reserved_bound_bytes=1000 * MIB, **changes))
        assert range_ is not None
        return range_.low_bytes, range_.high_bytes

    full = ends(max_allocated_bytes=1000 * MIB)
    cached, half, compiled = ends(), ends(half=True), ends(compiled=True)

    assert cached[0] < full[0]
    assert cached[1] > full[1]
    assert half[0] == cached[0]
    assert half[1] > cached[1]
    assert compiled[0] < cached[0]
    assert compiled[1] > half[1]
    assert ends(convolutions=True) == cached, "without large operands; a 1x1 convolution cost a transformer 20 %"


def test_records_without_a_bound_are_read_as_before() -> None:
    old = allocator(max_reserved_bound_bytes=None, context_range_bytes=None, convolutions=True)
    range_ = allocator_range(old)

    assert range_ is not None
    assert range_.low_bytes == round(LEAST) + (344 - 100) * MIB
    assert range_.high_bytes == round(1000 * MIB * (1 + MORE_WITHOUT_BOUND)) + 494 * MIB


# --- answers ---------------------------------------------------------------------------------------------------------


def dry_run(low: int, expected: int, high: int, **changes) -> SimulatedRun:
    """In MiB."""
    peak = PeakRange(low * MIB, expected * MIB, high * MIB)
    return SimulatedRun("one", ("one",), 1.0, peak=peak, parts=replace(NOTHING, activations=expected * MIB), **changes)


@pytest.mark.parametrize(
    ("members", "answer"),
    [
        ([(100, 200, 300), (100, 200, 499)], Answer.FITS),
        ([(100, 200, 300), (100, 200, 500)], Answer.UNDECIDED),
        ([(400, 500, 600), (399, 500, 600)], Answer.UNDECIDED),
        ([(400, 500, 600), (400, 500, 600)], Answer.DOES_NOT_FIT),
    ],
)
def test_only_a_whole_interval_on_one_side_decides(members, answer: Answer) -> None:
    forecast = Forecast("group", tuple(dry_run(*one) for one in members), 200 * MIB, 1000 * MIB)

    assert forecast.answer is answer
    assert forecast.parts is not None
    assert forecast.parts.total == sum(one[1] for one in members) * MIB

    failed = SimulatedRun("two", ("two",), 1.0, failure="expected the program to end well, found exit code 1")
    forecast = Forecast("group", (dry_run(1, 2, 3), failed), 0, 100 * MIB)
    assert (forecast.answer, forecast.peak) == (Answer.UNKNOWN, None)
    assert forecast.failures == ("two expected the program to end well, found exit code 1",)
    assert Parts(1, 2, 3, 4, 5, 6, 7) + Parts(1, 1, 1, 1, 1, 1, 1) == Parts(2, 3, 4, 5, 6, 7, 8)
