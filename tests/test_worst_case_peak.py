"""The worst-case peak: what a run shows of each member, put together at the worst meeting that can occur."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import background, evidence, foreground, predicted_evidence, trace
from fake_nvml import FakeNvml
from groups import group, judged, observing, training
from hypothesis import given
from hypothesis import strategies as st

from colocate.probe.history import History
from colocate.units import MIB
from colocate.verdict.evidence import Allocator, Evidence, Member, ProcessPeak
from colocate.verdict.measured_peak import measured_peak
from colocate.verdict.memory_history import by_allocators
from colocate.verdict.rules import Outcome, Verdict, judge
from colocate.verdict.worst_case_peak import WorstCasePeak, worst_case_peak


def reported(member: Member, *held: tuple[float, int], held_by: str = "allocator") -> Member:
    """The member with what its allocator held over time, in MiB."""
    highest = max(size for _, size in held) * MIB
    return replace(
        member,
        held=tuple((at, size * MIB) for at, size in held),
        held_by=held_by,
        allocators=(Allocator(1, "cuda", optimizer_steps=10, max_reserved_bytes=highest),),
    )


def apart() -> Evidence:
    """The foreground held 4000 MiB at its start only, the background 5000 MiB for a moment at its end only."""
    return evidence(
        foreground=reported(foreground(), (8.0, 4000), (11.0, 1000)),
        background=reported(background(), (1.5, 1500), (21.2, 5000), (21.8, 1500)),
        trace=trace(*[230] * 3, *[1730] * 5, *[5730] * 3, *[2730] * 11, 1730, 230),
    )


QUIET = trace(*[230] * 24)
"""Samples that happened to miss all that the members told."""


def test_maxima_that_never_met_do_not_make_this_run_doubtful() -> None:
    verdict = judge(apart())

    assert verdict.outcome is Outcome.FEASIBLE, str(verdict)
    assert verdict.peak_high_bytes == (230 + 4000 + 1500) * MIB
    assert verdict.worst_case is not None
    assert verdict.worst_case.peak_bytes == (230 + 4000 + 5000) * MIB
    (warning,) = [one for one in verdict.warnings if one.code == "worst_case_over_limit"]
    assert "if start of the foreground met train of the background" in warning.text
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_without_times_all_maxima_may_have_met_as_before() -> None:
    seen = apart()
    timeless = replace(
        seen, foreground=replace(seen.foreground, held=()), background=replace(seen.background, held=(), held_by=None)
    )
    verdict = judge(replace(timeless, foreground=replace(timeless.foreground, held_by=None)))

    assert verdict.codes == ("peak_between_samples",)
    assert verdict.worst_case is None


def test_lists_of_processes_do_not_prove_that_maxima_never_met() -> None:
    """They miss what happens between them."""
    seen = apart()
    listed = replace(seen, background=replace(seen.background, held_by="processes"))

    assert judge(listed).codes == ("peak_between_samples",)
    assert judge(listed).worst_case.reported_by == "processes"


def test_what_was_seen_is_possible_whatever_the_lists_missed() -> None:
    both = (replace(one, held=((9.0, 700 * MIB),), held_by="processes") for one in (foreground(), background()))
    ours, theirs = both

    assert worst_case_peak(evidence(foreground=ours, background=theirs)).peak_bytes == 3200 * MIB


def test_what_the_background_showed_once_is_met_only_by_what_the_foreground_has_reached() -> None:
    """3 s after it was ready its kernels were tried out; the foreground evaluates 10 s after its own start."""
    once = reported(background(epochs=foreground().epochs[:0]), (1.5, 1000), (6.0, 4000), (6.5, 1000))
    late = reported(foreground(), (8.5, 1000), (18.0, 3000))
    epochs = tuple(replace(foreground().epochs[0], elapsed_s=at) for at in (7.0, 11.0))

    with_epochs = worst_case_peak(evidence(foreground=late, background=replace(once, epochs=epochs), trace=QUIET))
    never_ended = worst_case_peak(evidence(foreground=late, background=replace(once, epochs=epochs[:1]), trace=QUIET))

    assert with_epochs.peak_bytes == (230 + 1000 + 4000) * MIB
    assert never_ended.peak_bytes == (230 + 3000 + 4000) * MIB, "nobody knows yet what comes again"


def test_a_background_that_is_started_again_shows_its_start_again() -> None:
    process_runs = background().process_runs
    ended = replace(process_runs[0], exit=replace(process_runs[0].exit, ended_s=9.0))
    twice = replace(background(), process_runs=(ended, replace(process_runs[0], started_s=10.0)))
    again = reported(twice, (1.5, 4000), (2.5, 1000))
    late = reported(foreground(), (8.5, 1000), (18.0, 3000))

    seen = evidence(foreground=late, background=again, trace=QUIET)
    assert worst_case_peak(seen).peak_bytes == (230 + 3000 + 4000) * MIB


def test_nothing_is_possible_that_nobody_told() -> None:
    assert worst_case_peak(evidence()) is None
    assert worst_case_peak(replace(apart(), background=None)) is None
    assert worst_case_peak(replace(apart(), baseline_bytes=None)) is None


def test_a_prediction_rests_on_the_possible_peak_already() -> None:
    seen = predicted_evidence(4000, 5000)
    held = replace(
        seen,
        foreground=replace(seen.foreground, held=((8.5, 4350 * MIB),), held_by="allocator"),
        background=replace(seen.background, held=((1.5, 5350 * MIB),), held_by="allocator"),
    )
    verdict = judge(held)

    assert verdict.codes == judge(seen).codes == ("peak_over_limit",)
    assert "worst_case_over_limit" not in {one.code for one in verdict.warnings}
    assert verdict.worst_case.peak_bytes == verdict.peak_bytes


SIZES = st.integers(0, 3000)


@given(a=st.lists(SIZES, min_size=1, max_size=6), b=st.lists(SIZES, min_size=1, max_size=6))
def test_what_is_possible_is_never_below_what_the_run_showed(a: list[int], b: list[int]) -> None:
    seen = evidence(
        foreground=reported(foreground(), *((8.0 + at, size) for at, size in enumerate(a))),
        background=reported(background(), *((4.0 + at, size) for at, size in enumerate(b))),
        trace=QUIET,
    )
    bounds, worst_case = measured_peak(seen), worst_case_peak(seen)
    sums = seen.baseline_bytes + (max(a) + max(b)) * MIB

    assert worst_case is None or bounds.high_bytes <= max(worst_case.peak_bytes, bounds.expected_bytes) <= sums


# Where what was told is not all, maxima may have met.


def unaccounted() -> Evidence:
    """Samples a moment before or after both maxima, which met beside contexts of 400 MiB that nobody tells of."""
    return evidence(
        foreground=reported(foreground(), (8.0, 1000), (15.2, 4000), (15.6, 1000)),
        background=reported(background(), (1.5, 2700)),
        trace=trace(230, 230, *[3130] * 6, *[4530] * 13, *[3130] * 2, 230),
    )


def test_contexts_that_nobody_tells_of_count_for_what_can_have_met() -> None:
    """Without the driver's accounting only the samples show them: 4000 + 2700 + 230 is below the limit, the sum not."""
    verdict = judge(unaccounted())

    assert verdict.peak_high_bytes == (230 + 4000 + 2700 + 2 * 400 - 200) * MIB
    assert verdict.codes == ("peak_between_samples",)
    assert verdict.worst_case is not None
    assert verdict.worst_case.peak_bytes == verdict.peak_high_bytes


def test_the_end_of_a_process_and_a_sample_may_be_told_in_either_order() -> None:
    late = replace(apart(), trace=trace(*[230] * 3, *[1730] * 5, *[5730] * 3, *[2730] * 11, 1730, 1730))

    assert measured_peak(late).high_bytes == (230 + 4000 + 1500) * MIB


def test_what_the_accounting_knows_of_one_life_is_missing_in_that_life() -> None:
    """The first life was killed a moment after it took 5000 MiB, told by the driver only; the second told all."""
    process_runs = background().process_runs
    ended = replace(process_runs[0], exit=replace(process_runs[0].exit, ended_s=9.5))
    twice = replace(background(), process_runs=(ended, replace(process_runs[0], started_s=10.0)))
    peaks = (ProcessPeak(100, 0, 5000 * MIB), ProcessPeak(101, 1, 4500 * MIB))
    seen = evidence(
        foreground=reported(foreground(), (8.0, 3000), (10.0, 1000)),
        background=replace(reported(twice, (1.5, 1000), (21.0, 4500), (21.5, 1000)), process_peaks=peaks),
        trace=QUIET,
    )

    assert measured_peak(seen).high_bytes >= (230 + 3000 + 5000) * MIB


@pytest.mark.parametrize(
    ("histories", "allocators"),
    [
        ({1: ((1.0, 500),)}, (Allocator(1, "cuda", max_reserved_bytes=900),)),
        (
            {1: ((1.0, 500),)},
            (Allocator(1, "cuda", max_reserved_bytes=500), Allocator(2, "cuda", max_reserved_bytes=9)),
        ),
        ({1: ((1.0, 500),), 2: ()}, (Allocator(2, "cuda", max_reserved_bytes=9),)),
    ],
    ids=["its maximum is not in it", "a process without one", "an unreadable one"],
)
def test_a_history_that_lacks_something_is_none(
    histories: dict[int, tuple[tuple[float, int], ...]], allocators: tuple[Allocator, ...]
) -> None:
    assert by_allocators(histories, allocators, background().process_runs, 30.0) == ()


# The probe's own record of time.


@given(st.lists(st.lists(st.integers(-300, 300), max_size=5), min_size=1, max_size=40), st.sampled_from([4, 7, 256]))
def test_a_history_is_nowhere_below_what_was_held(changes: list[list[int]], most: int) -> None:
    """Between two readings memory comes and goes; each inner list is what happened between two."""
    history, level, grown, highest = History(most), 0, 0, 0
    truth = []
    for number, between in enumerate(changes):
        history.add(
            float(number), {"reserved_bytes": level, "max_reserved_bytes": highest, "reserved_grown_bytes": grown}
        )
        truth.append((float(number), level))
        for place, change in enumerate(between, start=1):
            change = max(change, -level)
            level, grown = level + change, grown + max(0, change)
            highest = max(highest, level)
            truth.append((number + place / 10, level))
    history.add(
        float(len(changes)), {"reserved_bytes": level, "max_reserved_bytes": highest, "reserved_grown_bytes": grown}
    )

    assert len(history.steps) <= most
    assert max(size for _, size in history.steps) == highest or most < 256
    for at, held in truth:
        assert max(size for begun, size in history.steps if begun <= at) >= held
        assert [size for begun, size in history.steps if begun <= at][-1] >= held


def told(reserved: int, most: int, grown: int) -> dict[str, int]:
    return {"reserved_bytes": reserved, "max_reserved_bytes": most, "reserved_grown_bytes": grown}


def test_counters_that_are_set_back_or_do_not_count_growth_are_taken_at_their_highest() -> None:
    """``backend:cudaMallocAsync`` tells 0 for its growth."""
    for first, second in ((told(100, 900, 2000), told(100, 900, 50)), (told(100, 100, 0), told(100, 900, 0))):
        history = History()
        history.add(1.0, first)
        history.add(2.0, second)
        assert history.steps == [(1.0, 900), (2.0, 100)]


def test_a_reading_that_takes_long_hides_nothing() -> None:
    """Begun at 2 and over at 3: what it tells may have been so at any time between."""
    history = History()
    history.add(1.0, told(100, 100, 100))
    history.add(2.0, told(100, 900, 900), 3.0)
    history.add(4.0, told(100, 900, 1500), 4.1)
    assert history.steps == [(1.0, 900), (3.0, 700), (4.1, 100)]

    history.add(5.0, told(100, 1500, 3000), 5.1)
    assert history.steps == [(1.0, 900), (3.0, 700), (4.0, 1500), (5.1, 100)], "from the begin of the reading before"


# Real processes.


@pytest.mark.slow
def test_a_record_that_was_given_up_tells_nothing_over_time(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    """Its process prints that it goes on without; what it held later is not known, the maximum so far still is."""
    whole = training("whole", "--probe", "--hold", "500")
    line = "colocate: probe record given up: OSError: [Errno 28] No space left on device"
    script = "import runpy, sys; sys.argv = sys.argv[1:]; "
    script += f"print({line!r}, flush=True); runpy.run_path(sys.argv[0], run_name='__main__')"
    given_up = replace(whole, argv=(sys.executable, "-c", script, *whole.argv[1:]))

    for number, one in enumerate([whole, given_up]):
        with observing(group(one, None), fake_nvml.uuid(), tmp_path / str(number)) as observation:
            observation.preflight()
            observation.run_foreground()
            observation.conclude()
            seen = observation.evidence().foreground
        assert (seen.held_by == "allocator") is (one is whole)
        assert [reported.max_reserved_bytes for reported in seen.allocators] == [500 * MIB]


@pytest.mark.slow
def test_the_evaluation_of_one_beside_that_of_the_other(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    """Each evaluates in 2500 MiB: the background after 2.5 s and again after 5.2, the foreground about 3.8 s after that
    was ready. It is not known in advance what a slow machine makes of this, so much time lies between.
    """
    kept = ["--probe", "--hold", "500", "--peak", "2500", "--evaluate-steps", "4", "--step-s", "0.05"]
    ours = training("ours", *kept, "--steps", "70")
    load = training("load", *kept, "--steps", "50", "--repeat")

    verdict = judged(group(ours, load, peak="4000MB"), fake_nvml.uuid(), tmp_path)

    assert verdict.feasible, str(verdict)
    assert verdict.peak_bytes == verdict.peak_high_bytes == 3000 * MIB
    assert verdict.worst_case == WorstCasePeak(5000 * MIB, "evaluate", "evaluate", "allocator")
    assert "worst_case_over_limit" in {one.code for one in verdict.warnings}
