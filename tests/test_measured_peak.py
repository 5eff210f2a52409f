"""The peak's bounds from samples, accounting and allocators; `test_faults` has the same with real processes."""

from dataclasses import replace

from builders import background, evidence, foreground, trace
from hypothesis import given
from hypothesis import strategies as st

from colocate.units import MIB
from colocate.verdict.evidence import Allocator, ProcessPeak
from colocate.verdict.measured_peak import PeakReading, measured_peak, own_steps, readings
from colocate.verdict.rules import Outcome, judge

SIZES = st.integers(0, 8192)


def peak(pid: int, mib: int, process_run: int = 0) -> ProcessPeak:
    return ProcessPeak(pid, process_run, mib * MIB)


def test_sources_that_agree_leave_one_number() -> None:
    """230 MiB of baseline, 1570 of the background, 1400 of the foreground: what the samples say too."""
    seen = evidence(
        foreground=foreground(process_peaks=(peak(200, 1400),)), background=background(process_peaks=(peak(100, 1570),))
    )
    bounds = measured_peak(seen)

    assert bounds is not None
    assert (bounds.low_bytes, bounds.expected_bytes, bounds.high_bytes) == (3200 * MIB,) * 3
    assert judge(seen).warnings == judge(evidence()).warnings


def test_every_source_is_shown_with_its_label() -> None:
    seen = evidence(
        foreground=foreground(
            process_peaks=(peak(200, 1400), peak(201, 100)), allocators=(Allocator(200, "cuda", max_reserved_bytes=9),)
        )
    )

    assert readings(seen) == (
        PeakReading("samples", "gpu", 3200 * MIB),
        PeakReading("accounting", "foreground", 1400 * MIB),
        PeakReading("allocator", "foreground", 9),
    )
    assert judge(seen).peaks == readings(seen)


def test_a_process_that_held_more_than_the_limit_alone_is_proof_and_a_sum_of_peaks_is_a_doubt() -> None:
    """The foreground's life begins at 1800 MiB: 1800 + 5800 is over the limit, but 230 + 5800 is no proof."""
    verdict = judge(evidence(foreground=foreground(process_peaks=(peak(200, 7300),))))
    assert verdict.codes == ("peak_over_limit",)
    assert verdict.peak_low_bytes == (7300 + 230) * MIB

    ours, theirs = foreground(process_peaks=(peak(200, 3000),)), background(process_peaks=(peak(100, 4400),))
    for seen in (
        evidence(foreground=foreground(process_peaks=(peak(200, 5800),))),
        evidence(foreground=ours, background=theirs),
    ):
        verdict = judge(seen)
        assert (verdict.outcome, verdict.codes) == (Outcome.INCONCLUSIVE, ("peak_between_samples",))


def test_a_spike_that_stays_below_the_limit_is_told() -> None:
    verdict = judge(
        evidence(
            foreground=foreground(
                allocators=(Allocator(200, "cuda", optimizer_steps=3, max_reserved_bytes=2000 * MIB),)
            )
        )
    )

    assert verdict.feasible
    assert verdict.peak_bytes == 3800 * MIB
    assert "the samples missed 600 MiB" in str(next(one for one in verdict.warnings if one.code == "spike"))


def test_lives_after_each_other_do_not_add_up_and_processes_of_one_life_do() -> None:
    apart = evidence(background=background(process_peaks=(peak(100, 4000, 0), peak(101, 4000, 1))))
    together = evidence(background=background(process_peaks=(peak(100, 4000, 0), peak(101, 4000, 0))))

    assert judge(apart).feasible
    assert judge(together).codes == ("peak_between_samples",)


def test_processes_of_which_nobody_told_when_they_held_how_much_may_have_met() -> None:
    pair = tuple(Allocator(pid, "cuda", optimizer_steps=10, max_reserved_bytes=3000 * MIB) for pid in (200, 201))
    seen = evidence(
        foreground=foreground(allocators=pair), background=background(process_peaks=(ProcessPeak(100, 0, 1600 * MIB),))
    )

    assert measured_peak(seen).high_bytes == (230 + 6000 + 2 * 494 + 1600) * MIB, "contexts are in no allocator's count"
    assert judge(seen).codes == ("peak_between_samples",)


@given(st.lists(SIZES, min_size=1, max_size=20), st.lists(st.tuples(st.integers(0, 2), SIZES), max_size=4), SIZES)
def test_no_source_lowers_what_another_says(samples: list[int], peaks: list[tuple[int, int]], more: int) -> None:
    known = tuple(peak(number, mib, process_run) for number, (process_run, mib) in enumerate(peaks))
    seen = evidence(trace=trace(*samples), foreground=foreground(process_peaks=known))
    further = replace(seen, foreground=foreground(process_peaks=(*known, peak(99, more))))
    before, after = measured_peak(seen), measured_peak(further)

    assert before is not None
    assert after is not None
    assert max(samples) * MIB <= before.low_bytes <= before.expected_bytes <= before.high_bytes
    assert before.low_bytes <= after.low_bytes
    assert before.expected_bytes <= after.expected_bytes
    assert before.high_bytes <= after.high_bytes


def test_without_samples_nothing_is_known() -> None:
    for member in (foreground, background):
        known = {member.__name__: member(process_peaks=(peak(1, 700),))}
        assert measured_peak(evidence(trace=trace(), **known)) is None


def test_what_only_the_accounting_knows_of_a_run_is_added_from_its_start_on() -> None:
    told = background(
        held=((1.5, 1000 * MIB), (12.0, 700 * MIB)), held_by="allocator", process_peaks=(peak(100, 1300),)
    )

    assert list(own_steps(told, 30.0).spans()) == [
        (1.0, 1.5, 300 * MIB),
        (1.5, 12.0, 1300 * MIB),
        (12.0, 23.0, 1000 * MIB),
    ]
