from dataclasses import replace

import pytest
from builders import (
    LIMIT_BYTES,
    background,
    evidence,
    foreground,
    out_of_memory,
    predicted_evidence,
    simulated,
    steps,
    trace,
)
from hypothesis import given
from hypothesis import strategies as st

from colocate.process.exit_status import Exit
from colocate.units import MIB
from colocate.verdict.coverage import Coverage
from colocate.verdict.evidence import (
    Allocator,
    Evidence,
    Gap,
    GpuProcess,
    JudgedLimits,
    Member,
    MemoryWords,
    ProcessPeak,
    ProcessRun,
    Sample,
)
from colocate.verdict.memory_words import counted_none, weight
from colocate.verdict.remarks import steady_growth_bytes
from colocate.verdict.rules import Outcome, Verdict, judge
from colocate.verdict.verdict import memory_class

FAILED = (ProcessRun("training.log", 8.0, Exit(1, None, 15.0)),)
STOPPED = (ProcessRun("training.log", 8.0, Exit(None, "SIGKILL", 21.0, stopped=True)),)


def test_a_sound_group_is_feasible_with_its_numbers() -> None:
    verdict = judge(evidence())

    assert verdict.feasible
    assert verdict.reasons == ()
    assert (verdict.peak_bytes, verdict.headroom_bytes) == (3200 * MIB, 4300 * MIB)
    assert (verdict.memory_class, verdict.basis, verdict.overlap) == ("usable", "measured", 1.0)
    assert verdict.phases_together == (("train", "train"),)


WORDS = MemoryWords("PyTorch", "raised", "gpu", "CUDA out of memory", 1, 12.0, 0)
COUNTS = (Allocator(200, "cuda", max_reserved_bytes=MIB),)


@pytest.mark.parametrize(
    ("words", "survives", "alone", "fails"),
    [
        (WORDS, "warning", "proof", "proof"),
        (replace(WORDS, certainty="reported"), "warning", "doubt", "proof"),
        (replace(WORDS, certainty="possible"), "warning", "doubt", "doubt"),
        (replace(WORDS, certainty="mentioned"), "warning", "warning", "warning"),
        (replace(WORDS, framework="CUDA libraries"), "doubt", "proof", "proof"),
        (replace(WORDS, framework="own words", certainty="reported"), "warning", "doubt", "proof"),
        (replace(WORDS, framework="host", memory="host"), "warning", "warning", "doubt"),
    ],
)
def test_what_words_weigh(words: MemoryWords, survives: str, alone: str, fails: str) -> None:
    """In a finished training whose allocator counted none, in a finished one without a probe, and in a failed one.

    Words used to be proof wherever they stood.
    """
    ended = (ProcessRun("training.log", 8.0, Exit(0, None, 20.0)),)

    assert weight(words, ended, counted_none(COUNTS, False)) == survives
    assert weight(words, ended, counted_none((), False)) == alone
    assert weight(words, ended, counted_none(COUNTS, True)) == alone
    assert weight(words, FAILED, False) == fails


def test_words_alone_are_a_doubt_or_a_warning_and_never_proof() -> None:
    doubt = judge(evidence(foreground=foreground(memory_words=(replace(WORDS, certainty="reported"),))))
    counted = judge(evidence(foreground=foreground(memory_words=(WORDS,), allocators=COUNTS)))

    assert (doubt.outcome, doubt.codes) == (Outcome.INCONCLUSIVE, ("out_of_memory_suspected",))
    assert "out_of_memory_mentioned" in {warning.code for warning in counted.warnings}
    assert "foreground_out_of_memory" not in counted.codes


BLIND = {"trace": trace(*[230] * 3, *[1800] * 7, *[3200] * 11, *[1800] * 2, 230)}
BLIND["trace"] = replace(BLIND["trace"], samples=tuple(s for s in BLIND["trace"].samples if not 3 < s.elapsed_s < 10))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("foreground_out_of_memory", {"foreground": foreground(out_of_memory=(out_of_memory(),), process_runs=FAILED)}),
        ("background_out_of_memory", {"background": background(out_of_memory=(out_of_memory("log"),))}),
        ("foreground_failed", {"foreground": foreground(process_runs=FAILED, epochs=())}),
        ("foreground_failed", {"foreground": foreground(process_runs=FAILED)}),
        ("epoch_unfinished", {"foreground": foreground(epochs=())}),
        ("peak_over_limit", {"trace": trace(*[230] * 10, *[7500] * 11)}),
        (
            "foreground_host_out_of_memory",
            {
                "foreground": foreground(
                    process_runs=(ProcessRun("training.log", 8.0, Exit(None, "SIGKILL", 15.0, host_oom_kills=1)),)
                )
            },
        ),
    ],
)
def test_what_proves_that_a_group_does_not_fit_is_infeasible(code: str, changes: dict[str, object]) -> None:
    verdict = judge(evidence(**changes))

    assert verdict.outcome is Outcome.INFEASIBLE
    assert code in verdict.codes


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("interrupted", {"faults": (("interrupted", "stopped by SIGINT"),)}),
        ("sensor_lost", {"trace": replace(trace(*[3200] * 25), lost="GPU is lost")}),
        ("foreign_process", {"gpu_processes": (GpuProcess(77, "foreign", "python other.py", 12.0, 14.0),)}),
        ("not_emulated", {"foreground": foreground(allocators=(Allocator(1, "virtual", unsupported="Triton"),))}),
        ("foreground_hang", {"foreground": foreground(stalled_after_s=300.0, epochs=(), process_runs=STOPPED)}),
        ("foreground_timeout", {"foreground": foreground(timed_out_after_s=3600.0, epochs=(), process_runs=STOPPED)}),
        (
            "foreground_not_started",
            {"foreground": foreground(progress_events=(), epochs=(), held_gpu=False, process_runs=FAILED)},
        ),
        (
            "foreground_not_started",
            {"foreground": foreground(progress_events=(), epochs=(), held_gpu=False, process_runs=())},
        ),
        ("foreground_off_gpu", {"foreground": foreground(held_gpu=False)}),
        ("foreground_off_gpu", {"trace": trace(*[230] * 3, *[1800] * 20, 230)}),
        ("probe_lost", {"foreground": foreground(probe_lost=True)}),
        ("probe_lost", {"background": background(probe_lost=True)}),
        ("epoch_cut", {"foreground": foreground(allocators=(Allocator(1, "cuda", passes_cut=1),))}),
        ("background_gave_up", {"background": background(gave_up="3 starts in a row ended within 5 s")}),
        ("background_never_ready", {"background": background(ready_s=None)}),
        ("background_off_gpu", {"background": background(held_gpu=False)}),
        ("too_little_overlap", {"background": background(progress_events=steps(100, 3.0, 15.0))}),
        ("background_no_step", {"background": background(progress_events=steps(100, 3.0, 9.0))}),
        (
            "implausible_record",
            {
                "foreground": foreground(
                    allocators=(Allocator(200, "cuda", optimizer_steps=10, max_reserved_bytes=2**62),)
                )
            },
        ),
        ("no_samples", {"trace": trace()}),
        ("no_baseline", {"baseline_bytes": None}),
        ("gpu_not_returned", {"returned_to_baseline": False, "final_bytes": 900 * MIB}),
        ("gpu_not_returned", {"returned_to_baseline": None, "final_bytes": None}),
        ("sensor_gap", {"trace": replace(evidence().trace, gaps=(Gap(12, 12.05, "the machine slept", 60.0),))}),
        (
            "sensor_gap",
            {"trace": replace(trace(*[3200] * 12), gaps=(Gap(11, 25, "blocked"),))},
        ),
        # While it loads its model, and while it saves after its epoch.
        (
            "sensor_gap",
            {"foreground": foreground(process_runs=(ProcessRun("training.log", 2.0, Exit(0, None, 21.0)),)), **BLIND},
        ),
        (
            "sensor_gap",
            {"foreground": foreground(process_runs=(ProcessRun("training.log", 8.0, Exit(0, None, 40.0)),))},
        ),
        # The driver says of a process that it held more than it says of the whole GPU.
        (
            "sensor_contradicted",
            {"gpu_processes": (GpuProcess(200, "foreground", "python a.py", 9.0, 19.0, 3300 * MIB),)},
        ),
        ("sensor_contradicted", {"gpu_processes": (GpuProcess(7, "unknown", "pid 7", 12.0, 12.0, 3300 * MIB),)}),
    ],
)
def test_what_leaves_the_proof_incomplete_is_inconclusive(code: str, changes: dict[str, object]) -> None:
    verdict = judge(evidence(**changes))

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert code in verdict.codes


def test_a_hundred_stub_runs_as_background_are_not_a_load() -> None:
    """The study counted a background that exited 0 after a second, 103 times, as a success."""
    process_runs = tuple(ProcessRun(f"training_{n}.log", n, Exit(0, None, n + 1.0)) for n in range(1, 104))

    verdict = judge(
        evidence(background=background(process_runs=process_runs, progress_events=(), held_gpu=False, ready_s=None))
    )

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert {"background_never_ready", "background_off_gpu"} <= set(verdict.codes)


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        (("epoch 1", "ValueError: not enough values to unpack", "  warnings.warn("), ": ValueError: not enough values"),
        (("torch.OutOfMemoryError: CUDA out of memory.", "Traceback"), ": torch.OutOfMemoryError: CUDA out of memory."),
        (("usage: train.py [-h]", "train.py: error: unknown option"), ": train.py: error: unknown option"),
        ((), ""),
    ],
)
def test_a_failure_is_told_in_the_words_of_its_log(lines: tuple[str, ...], word: str) -> None:
    process_runs = (replace(FAILED[0], last_lines=lines),)
    early = judge(evidence(foreground=foreground(process_runs=process_runs, epochs=()))).reasons[0]
    never = judge(
        evidence(background=background(process_runs=process_runs, gave_up="3 of 3 process runs failed", ready_s=None))
    ).reasons[0]

    assert f"ended with exit code 1 before its epoch was done{word}" in early.text
    assert f"3 of 3 process runs failed{word}" in never.text


def idle(kind: str) -> Member:
    """It made a step every second, none for the 16 s in which the foreground trained, and one after that."""
    progress_events = steps(100, 0.0, 5.0)[2:]
    return background(
        progress_events=tuple(
            replace(event, kind=kind) for event in (*progress_events, replace(progress_events[-1], elapsed_s=35.0))
        )
    )


def test_a_background_that_waits_between_two_steps_does_not_train() -> None:
    """As one that was stopped, or waits for its data: it used to count up to the stall time of five minutes."""
    assert judge(evidence(background=idle("step"))).codes == ("too_little_overlap", "background_no_step")


def test_a_background_that_tells_no_phases_may_pause_as_it_usually_does() -> None:
    """As for an evaluation. Any pause used to count as training, also one that was just the foreground's time."""
    pauses = idle("optimizer")
    assert judge(evidence(background=pauses)).codes == ("too_little_overlap", "background_no_step")

    earlier = [replace(event, kind="optimizer", elapsed_s=event.elapsed_s - 40) for event in steps(100, 0.0, 5.0)[2:]]
    begun = (replace(pauses.process_runs[0], started_s=-50.0),)
    usual = replace(pauses, process_runs=begun, progress_events=(*earlier, *pauses.progress_events))
    assert judge(evidence(background=usual)).feasible


def test_a_foreign_process_outweighs_an_out_of_memory_and_that_a_missing_overlap() -> None:
    """The out-of-memory may be the foreign process's doing."""
    foreign = GpuProcess(77, "foreign", "python other.py", 12.0, 14.0)
    verdict = judge(evidence(foreground=foreground(out_of_memory=(out_of_memory(),)), gpu_processes=(foreign,)))
    assert (verdict.outcome, verdict.memory_class) == (Outcome.INCONCLUSIVE, None)

    dead = background(progress_events=steps(100, 3.0, 9.0), out_of_memory=(out_of_memory(),))
    assert judge(evidence(background=dead)).codes == ("background_out_of_memory",)


def test_a_swallowed_out_of_memory_is_infeasible_although_the_program_exits_0() -> None:
    verdict = judge(evidence(foreground=foreground(out_of_memory=(out_of_memory("probe"),))))

    assert verdict.codes == ("foreground_out_of_memory",)
    assert "and went on" in verdict.reasons[0].text


def test_survival_by_flushing_the_cache_is_feasible_but_tight() -> None:
    verdict = judge(
        evidence(foreground=foreground(allocators=(Allocator(1, "cuda", optimizer_steps=3, num_alloc_retries=2),)))
    )

    assert verdict.feasible
    assert [warning.code for warning in verdict.warnings] == ["tight"]


def test_a_training_without_events_is_believed_by_its_exit_code_and_that_is_said() -> None:
    progress_events = tuple(replace(event, kind="optimizer", phase=None) for event in foreground().progress_events)
    verdict = judge(evidence(foreground=foreground(progress_events=progress_events, epochs=())))

    assert verdict.feasible
    assert "completion_by_exit_code" in [warning.code for warning in verdict.warnings]


@pytest.mark.parametrize("changes", [{"tracebacks": 1}, {"expects_metrics": True}])
def test_exit_code_0_after_a_traceback_or_without_the_metric_is_not_an_epoch(changes: dict[str, object]) -> None:
    """Launchers of the study printed their success line after a traceback and exited 0."""
    progress_events = tuple(replace(event, kind="optimizer", phase=None) for event in foreground().progress_events)

    assert judge(evidence(foreground=foreground(progress_events=progress_events, epochs=(), **changes))).codes == (
        "epoch_unfinished",
    )


def test_a_cpu_training_need_not_hold_the_gpu_and_a_group_without_background_needs_no_overlap() -> None:
    assert judge(evidence(background=background(uses_gpu=False, held_gpu=False))).feasible
    on_the_host = foreground(uses_gpu=False, held_gpu=False)
    assert "foreground_idle" not in judge(evidence(foreground=on_the_host)).codes
    alone = judge(evidence(background=None))
    assert (alone.feasible, alone.overlap) == (True, None)


def test_phases_that_never_met_are_named() -> None:
    both = (
        *steps(100, 3.0, 12.0),
        *[replace(m, phase="evaluate", elapsed_s=m.elapsed_s + 30) for m in steps(100, 3.0, 5.0)],
    )
    verdict = judge(
        evidence(
            background=background(progress_events=both, ready_s=3.0),
            limits=JudgedLimits(LIMIT_BYTES, LIMIT_BYTES, overlap=0.1),
        )
    )

    assert ("train", "evaluate") in verdict.phases_apart
    assert "phases_not_seen_together" in [warning.code for warning in verdict.warnings]


# Predicted verdicts.


def test_a_program_that_fails_on_the_virtual_gpu_may_fail_of_it() -> None:
    """It computes no values, and a program may check them; on a GPU the same is a proof."""
    for changes in ({"process_runs": FAILED, "epochs": ()}, {"epochs": ()}):
        verdict = judge(predicted_evidence(554, 600, foreground=foreground(allocators=(simulated(600),), **changes)))

        assert verdict.codes == ("dry_run_failed",)
        assert not verdict.epoch_finished


def test_a_prediction_decides_where_its_whole_range_is_on_one_side_of_the_limit() -> None:
    verdict = judge(predicted_evidence(554, 600))
    assert (verdict.outcome, verdict.basis) == (Outcome.FEASIBLE, "predicted")
    assert verdict.epoch_cut
    assert verdict.peak_low_bytes < verdict.peak_bytes < verdict.peak_high_bytes < LIMIT_BYTES  # type: ignore[operator]
    assert judge(predicted_evidence(4500, 4000)).codes == ("peak_over_limit",)
    assert judge(predicted_evidence(3500, 3000)).codes == ("undecided",)


def test_an_out_of_memory_on_the_virtual_gpu_counts_only_when_its_lower_end_does_not_fit() -> None:
    failed = foreground(allocators=(simulated(4000),), out_of_memory=(out_of_memory(),), process_runs=FAILED, epochs=())

    assert "foreground_out_of_memory" in judge(predicted_evidence(0, 4500, foreground=failed)).codes
    assert judge(predicted_evidence(0, 2900, foreground=failed)).codes[0] == "undecided"


def test_what_a_training_wanted_alone_decides_after_an_out_of_memory() -> None:
    """How far it got on the full GPU is about the size of the GPU, so that alone was always undecided."""
    failed = foreground(
        allocators=(simulated(2900),),
        wanted=(simulated(5200),),
        out_of_memory=(out_of_memory(),),
        process_runs=FAILED,
        epochs=(),
    )
    verdict = judge(predicted_evidence(0, 4500, foreground=failed))

    assert verdict.codes == ("foreground_out_of_memory", "peak_over_limit")
    assert verdict.peak_bytes == (230 + 5200 + 350 + 4500 + 350) * MIB


def test_two_processes_of_one_training_may_meet_on_the_virtual_gpu() -> None:
    pair = foreground(
        allocators=(simulated(2800), simulated(2800, 201)),
        held=((9.0, 6300 * MIB), (9.2, 700 * MIB)),
        held_by="allocator",
    )
    assert judge(predicted_evidence(2800, 900)).feasible
    assert judge(predicted_evidence(2800, 900, foreground=pair)).codes == ("undecided",)


def test_what_a_dry_run_left_out_forbids_to_say_that_it_fits() -> None:
    """A dry run of three batches a pass used to say that a leak fits, and that a later phase does."""
    doubtful = Coverage(doubts=(("phase_not_reached", "`step % 100 == 0` (train.py:9) has not come true"),))
    ours = foreground(allocators=(simulated(2000, coverage=doubtful),))
    leaking = foreground(allocators=(simulated(2000, coverage=Coverage(growth_bytes=9000 * MIB)),))

    assert judge(predicted_evidence(2000, 900)).feasible
    assert judge(predicted_evidence(2000, 900, foreground=ours)).codes == ("phase_not_reached",)
    assert judge(predicted_evidence(2000, 900, foreground=leaking)).codes == ("undecided",)


def test_an_epoch_that_passes_with_a_leak_says_when_a_later_one_will_not() -> None:
    rising = tuple((float(second), (1000 + 100 * second) * MIB) for second in range(41))
    settled = tuple((float(second), min(1000 + 100 * second, 2500) * MIB) for second in range(41))
    rates = [steady_growth_bytes(held, 0.0, 40.0) for held in (rising, settled, ())]

    assert rates == [4000 * MIB, None, None]
    judged = judge(evidence(foreground=foreground(held=rising, held_by="allocator")))
    assert "epochs" in next(warning.text for warning in judged.warnings if warning.code == "memory_grew")


# Properties.

MEMORY = st.integers(0, 8192 * MIB)


@given(st.lists(MEMORY), MEMORY)
def test_one_more_sample_never_lowers_the_peak(readings: list[int], more: int) -> None:
    before = trace(*(reading / MIB for reading in readings))
    after = replace(before, samples=(*before.samples, Sample(999.0, more)))

    assert after.peak is not None
    assert before.peak is None or before.peak.used_bytes <= after.peak.used_bytes


@given(MEMORY, st.integers(1, 8192 * MIB), st.integers(0, 8192 * MIB))
def test_a_higher_limit_never_turns_feasible_into_something_else(peak: int, limit: int, more: int) -> None:
    seen = evidence(trace=trace(*[peak / MIB] * 25))
    low, high = (replace(seen, limits=JudgedLimits(value, 8192 * MIB)) for value in (limit, limit + more))

    assert judge(high).feasible or not judge(low).feasible


@st.composite
def any_evidence(draw: st.DrawFn) -> Evidence:
    """Evidence with any combination of the things that tests above change one at a time."""
    ooms = st.lists(st.builds(out_of_memory, st.sampled_from(["event", "probe", "log"])), max_size=2).map(tuple)
    exits = st.builds(Exit, st.sampled_from([0, 1, None]), st.none(), st.just(21.0), stopped=st.booleans())
    process_runs = st.lists(
        st.builds(ProcessRun, st.just("training.log"), st.just(8.0), st.one_of(st.none(), exits)), max_size=2
    ).map(tuple)
    common = {"out_of_memory": ooms, "held_gpu": st.booleans(), "process_runs": process_runs}
    changes = {name: draw(strategy) for name, strategy in common.items()}
    build = draw(st.sampled_from([evidence, lambda **kw: replace(predicted_evidence(500, 900), **kw)]))
    return build(
        trace=trace(*draw(st.lists(st.floats(0, 8192), max_size=30))),
        foreground=foreground(**changes, epochs=draw(st.sampled_from([(), foreground().epochs]))),
        background=draw(st.sampled_from([None, background(), background(progress_events=())])),
        returned_to_baseline=draw(st.sampled_from([None, False, True])),
    )


@given(any_evidence())
def test_no_record_without_samples_or_with_an_out_of_memory_is_ever_feasible(seen: Evidence) -> None:
    verdict = judge(seen)

    if not seen.trace.samples or any(member.out_of_memory for member in seen.members):
        assert not verdict.feasible
    assert verdict.feasible is (verdict.reasons == ())


@st.composite
def peaked_evidence(draw: st.DrawFn) -> Evidence:
    """Sound but for its peaks, which every source may tell; the background tells its optimizer's steps only."""
    sizes = st.integers(0, 8192 * MIB)
    reported = {}
    for build, pid, held_from_s in ((foreground, 200, 9.0), (background, 100, 2.0)):
        most = draw(st.lists(sizes, max_size=2))
        known = {"allocators": tuple(Allocator(pid + n, "cuda", None, 9, one, one) for n, one in enumerate(most))}
        known["process_peaks"] = tuple(
            ProcessPeak(pid, 0, one) for one in draw(st.lists(st.integers(1, 8192 * MIB), max_size=1))
        )
        if draw(st.booleans()):
            known |= {"held": ((held_from_s, sum(most)), (held_from_s + 5, draw(sizes))), "held_by": "allocator"}
        reported[build.__name__] = build(**known)
    progress_events = tuple(
        replace(event, kind="optimizer") for event in steps(100, 3.0, draw(st.sampled_from([22.0, 17.0])))
    )
    reported["background"] = replace(reported["background"], progress_events=progress_events)
    beside = draw(st.lists(sizes, min_size=12, max_size=12))
    return evidence(trace=trace(*[230] * 10, *(one / MIB for one in beside), 1800, 230), **reported)


def without(seen: Evidence, what: str, share: float) -> Evidence:
    """The same with something missing that speaks for the group; ``share`` says how much, or from where on."""
    ours, theirs = seen.foreground, seen.background
    assert theirs is not None
    samples = seen.trace.samples
    match what:
        case "steps":
            return replace(
                seen,
                background=replace(
                    theirs, progress_events=theirs.progress_events[: int(share * len(theirs.progress_events))]
                ),
            )
        case "samples":
            first = 9 + int(share * 8)
            return replace(seen, trace=replace(seen.trace, samples=samples[:first] + samples[first + 3 :]))
        case "baseline":
            return replace(seen, baseline_bytes=None)
        case "epoch":
            return replace(seen, foreground=replace(ours, epochs=()))
        case "exit":
            return replace(seen, foreground=replace(ours, process_runs=(replace(ours.process_runs[0], exit=None),)))
    return replace(seen, returned_to_baseline=None)


REMOVALS = ["steps", "samples", "baseline", "epoch", "exit", "returned"]


@given(peaked_evidence(), st.sampled_from(REMOVALS), st.floats(0, 1))
def test_what_is_missing_never_makes_a_group_feasible(seen: Evidence, what: str, share: float) -> None:
    assert judge(seen).feasible or not judge(without(seen, what, share)).feasible


@given(peaked_evidence(), st.integers(0, 8192 * MIB), st.sampled_from(["samples", "allocators", "accounting"]))
def test_more_memory_never_makes_a_group_feasible_that_does_not_fit(seen: Evidence, more: int, where: str) -> None:
    ours = seen.foreground
    if where == "samples":
        higher = tuple(Sample(at, used + more) for at, used in seen.trace.samples)
        larger = replace(seen, trace=replace(seen.trace, samples=higher))
    elif where == "allocators":
        more_reserved = [
            replace(one, max_reserved_bytes=(one.max_reserved_bytes or 0) + more) for one in ours.allocators
        ]
        larger = replace(seen, foreground=replace(ours, allocators=tuple(more_reserved)))
    else:
        higher_peaks = [replace(one, used_bytes=one.used_bytes + more) for one in ours.process_peaks]
        larger = replace(seen, foreground=replace(ours, process_peaks=tuple(higher_peaks)))

    assert judge(seen).outcome is not Outcome.INFEASIBLE or not judge(larger).feasible
    assert judge(larger).peak_low_bytes >= judge(seen).peak_low_bytes


@given(any_evidence())
def test_the_verdict_is_the_same_after_a_round_trip_through_json(seen: Evidence) -> None:
    restored = Evidence.from_json(seen.to_json(), seen.trace.samples)

    assert restored == seen
    assert judge(restored) == judge(seen) == Verdict.from_json(judge(seen).to_json())


@pytest.mark.parametrize("factor", [1, 10])
def test_classes_are_shares_of_the_limit_and_those_of_the_study_at_its_own(factor: int) -> None:
    """A group of 30,000 MiB on a GPU of 80 GB used to be "high-risk", by the figures of one of 8 GB."""
    expected = {2999: "stable", 3000: "usable", 4000: "usable", 4001: "high-risk"}
    for mib, class_ in expected.items():
        assert memory_class(mib * factor * MIB, 7500 * factor * MIB) == class_


def test_an_epoch_of_which_pytorch_saw_no_step_proves_nothing() -> None:
    """Nor does one of which no step was seen at all, and one of no steps, which was INFEASIBLE (epoch_unfinished)."""
    empty = tuple(replace(epoch, steps=0, steps_full=0) for epoch in foreground().epochs)
    assert judge(evidence(foreground=foreground(epochs=empty))).codes == ("epoch_contradicted",)
    unseen = tuple(event for event in foreground().progress_events if event.kind != "step")
    assert judge(evidence(foreground=foreground(progress_events=unseen))).codes == ("epoch_contradicted",)
    silent = Allocator(200, "cuda", optimizer_steps=0, max_reserved_bytes=MIB)
    verdict = judge(evidence(foreground=foreground(allocators=(silent,))))

    assert verdict.codes == ("epoch_contradicted",)
    counting = replace(silent, optimizer_steps=1)
    assert judge(evidence(foreground=foreground(allocators=(silent, counting)))).feasible, "one of its processes trains"


def test_a_member_that_takes_what_the_gpu_gives_never_fits_by_that() -> None:
    """A search for the largest batch was judged by what it got in one order of starting: FEASIBLE, or INFEASIBLE."""
    seen = predicted_evidence(500, 900)
    wanted = (replace(simulated(30000), num_ooms=2),)
    searches = replace(seen.foreground, out_of_memory=(out_of_memory("probe"),), wanted=wanted)
    sized = replace(seen.foreground, allocators=(replace(simulated(500), sized_by_free=True),))
    decides = replace(seen.foreground, allocators=(replace(simulated(500), open_branches=("train.py:7",)),))

    assert judge(seen).feasible
    for member, code in (
        (searches, "takes_what_it_gets"),
        (sized, "takes_what_it_gets"),
        (decides, "branch_on_values"),
    ):
        verdict = judge(replace(seen, foreground=member))
        assert (verdict.outcome, verdict.codes) == (Outcome.INCONCLUSIVE, (code,))
    fixed = replace(searches, wanted=(simulated(9000),))
    assert judge(replace(seen, foreground=fixed)).outcome is Outcome.INFEASIBLE, "it swallows, but wants a fixed amount"
    verdict = judge(predicted_evidence(500, 500, background=background()))
    assert (verdict.peak_bytes, "peak_unknown" in verdict.codes) == (None, True), "one that was not simulated"
