"""The possible peak: what a run shows of each member, put together at the worst meeting that can occur."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import background, evidence, foreground, predicted_evidence, trace
from fake_nvml import FakeNvml
from groups import group, judged, training
from hypothesis import given
from hypothesis import strategies as st

from colocate.evidence import Allocator, Evidence, Member
from colocate.peaks import measured_peak
from colocate.possible import Possible, possible_peak
from colocate.probe.history import History
from colocate.units import MIB
from colocate.verdict import Outcome, Verdict, judge


def told(member: Member, *held: tuple[float, int], held_by: str = "allocator") -> Member:
    """The member with what its allocator held over time, in MiB."""
    highest = max(size for _, size in held) * MIB
    return replace(
        member,
        held=tuple((at, size * MIB) for at, size in held),
        held_by=held_by,
        allocators=(Allocator(1, "cuda", max_reserved_bytes=highest),),
    )


def apart() -> Evidence:
    """The foreground held 4000 MiB at its start only, the background 5000 MiB for a moment at its end only."""
    return evidence(
        foreground=told(foreground(), (8.5, 4000), (11.0, 1000)),
        background=told(background(), (1.5, 1500), (21.2, 5000), (21.8, 1500)),
        trace=trace(*[230] * 3, *[1730] * 5, *[5730] * 3, *[2730] * 11, 1730, 230),
    )


def test_maxima_that_never_met_do_not_make_this_run_doubtful() -> None:
    verdict = judge(apart())

    assert verdict.outcome is Outcome.FEASIBLE, str(verdict)
    assert verdict.peak_high_bytes == (230 + 4000 + 1500) * MIB
    assert verdict.possible is not None
    assert verdict.possible.peak_bytes == (230 + 4000 + 5000) * MIB
    (warning,) = [one for one in verdict.warnings if one.code == "possible_peak_over_limit"]
    assert "if start of the foreground met train of the background" in warning.text
    assert Verdict.from_json(verdict.to_json()) == verdict


def test_without_times_all_maxima_may_have_met_as_before() -> None:
    seen = apart()
    timeless = replace(
        seen, foreground=replace(seen.foreground, held=()), background=replace(seen.background, held=(), held_by=None)
    )
    verdict = judge(replace(timeless, foreground=replace(timeless.foreground, held_by=None)))

    assert verdict.codes == ("peak_between_samples",)
    assert verdict.possible is None


def test_lists_of_processes_do_not_prove_that_maxima_never_met() -> None:
    """They miss what happens between them."""
    seen = apart()
    listed = replace(seen, background=replace(seen.background, held_by="processes"))

    assert judge(listed).codes == ("peak_between_samples",)
    assert judge(listed).possible.told_by == "processes"


def test_what_the_background_showed_once_is_met_only_by_what_the_foreground_has_reached() -> None:
    """3 s after it was ready its kernels were tried out; the foreground evaluates 10 s after its own start."""
    once = told(background(epochs=foreground().epochs[:0]), (1.5, 1000), (6.0, 4000), (6.5, 1000))
    late = told(foreground(), (8.5, 1000), (18.0, 3000))
    epochs = tuple(replace(foreground().epochs[0], elapsed_s=at) for at in (7.0, 11.0))

    with_epochs = possible_peak(evidence(foreground=late, background=replace(once, epochs=epochs)))
    never_ended = possible_peak(evidence(foreground=late, background=replace(once, epochs=epochs[:1])))

    assert with_epochs.peak_bytes == (230 + 1000 + 4000) * MIB
    assert never_ended.peak_bytes == (230 + 3000 + 4000) * MIB, "nobody knows yet what comes again"


def test_a_background_that_is_started_again_shows_its_start_again() -> None:
    lives = background().lives
    ended = replace(lives[0], exit=replace(lives[0].exit, ended_s=9.0))
    twice = replace(background(), lives=(ended, replace(lives[0], started_s=10.0)))
    again = told(twice, (1.5, 4000), (2.5, 1000))
    late = told(foreground(), (8.5, 1000), (18.0, 3000))

    assert possible_peak(evidence(foreground=late, background=again)).peak_bytes == (230 + 3000 + 4000) * MIB


def test_nothing_is_possible_that_nobody_told() -> None:
    assert possible_peak(evidence()) is None
    assert possible_peak(replace(apart(), background=None)) is None
    assert possible_peak(replace(apart(), baseline_bytes=None)) is None


def test_a_prediction_rests_on_the_possible_peak_already() -> None:
    seen = predicted_evidence(4000, 5000)
    held = replace(
        seen,
        foreground=replace(seen.foreground, held=((8.5, 4350 * MIB),), held_by="allocator"),
        background=replace(seen.background, held=((1.5, 5350 * MIB),), held_by="allocator"),
    )
    verdict = judge(held)

    assert verdict.codes == judge(seen).codes == ("peak_over_limit",)
    assert "possible_peak_over_limit" not in {one.code for one in verdict.warnings}
    assert verdict.possible.peak_bytes == verdict.peak_bytes


SIZES = st.integers(0, 3000)


@given(a=st.lists(SIZES, min_size=1, max_size=6), b=st.lists(SIZES, min_size=1, max_size=6))
def test_what_is_possible_is_never_below_what_the_run_showed(a: list[int], b: list[int]) -> None:
    seen = evidence(
        foreground=told(foreground(), *((8.0 + at, size) for at, size in enumerate(a))),
        background=told(background(), *((4.0 + at, size) for at, size in enumerate(b))),
        trace=trace(*[230] * 24),
    )
    bounds, possible = measured_peak(seen), possible_peak(seen)
    sums = seen.baseline_bytes + (max(a) + max(b)) * MIB

    assert possible is None or bounds.high_bytes <= max(possible.peak_bytes, bounds.expected_bytes) <= sums


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


def test_a_program_that_sets_its_counters_back_is_taken_at_its_highest() -> None:
    history = History()
    history.add(1.0, {"reserved_bytes": 100, "max_reserved_bytes": 900, "reserved_grown_bytes": 2000})
    history.add(2.0, {"reserved_bytes": 100, "max_reserved_bytes": 900, "reserved_grown_bytes": 50})

    assert history.steps == [(1.0, 900), (2.0, 100)]


# Real processes.


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
    assert verdict.possible == Possible(5000 * MIB, "evaluate", "evaluate", "allocator")
    assert "possible_peak_over_limit" in {one.code for one in verdict.warnings}
