"""When a background trained beside the foreground: not while it stood still, whatever it tells of phases."""

from dataclasses import replace

import pytest
from builders import GPU_BYTES, LIMIT_BYTES, background, evidence, foreground, steps, trace

from colocate.process.exit_status import Exit
from colocate.units import MIB
from colocate.verdict.evidence import JudgedLimits, Member, ProcessRun, ProgressEvent
from colocate.verdict.overlap import foreground_window, memory_missing_beside, neighbours, overlap, strides
from colocate.verdict.rules import judge

# The foreground of `builders` trains from 10 to 20 s; the background makes steps of a quarter of a second here.
QUICK_S = 0.25


def quick(start_s: float, end_s: float, kind: str = "step", pid: int = 100) -> list[ProgressEvent]:
    phase = "train" if kind == "step" else None
    number = int((end_s - start_s) / QUICK_S) + 1
    return [ProgressEvent(start_s + place * QUICK_S, pid, kind, phase) for place in range(number)]


def codes(*events: ProgressEvent, **changes: object) -> tuple[str, ...]:
    progress_events = tuple(sorted(events, key=lambda event: event.elapsed_s))
    return tuple(judge(evidence(background=background(progress_events=progress_events, **changes))).codes)


@pytest.mark.parametrize(
    ("kind", "told"), [("step", 2), ("step", 46), ("optimizer", 0), ("pattern", 0)], ids=lambda value: str(value)
)
def test_a_background_that_stands_still_while_the_foreground_trains_is_no_load(kind: str, told: int) -> None:
    """At a phase's boundary, or between two steps of one that tells no phases, it counted for the stall time.

    One that told phases all the time, a new one four times a second, and made no step counted as training.
    """
    phases = [ProgressEvent(9.6 + 11.4 * place / told, 100, "phase", f"phase {place}") for place in range(told)]

    assert "too_little_overlap" in codes(*quick(3, 9.5, kind), *phases, *quick(21.5, 23, kind))


def test_a_step_between_two_pauses_does_not_make_them_training() -> None:
    found = codes(*quick(3, 9.5, "optimizer"), *quick(14.5, 15, "optimizer"), *quick(20.5, 22, "optimizer"))

    assert "too_little_overlap" in found


def test_evaluations_that_come_again_and_again_are_training() -> None:
    """Four seconds of steps, one of evaluation without any, from before the foreground to after it."""
    events = [event for at in range(0, 25, 5) for event in quick(at + 1, at + 4.5, "optimizer")]

    assert codes(*events) == ()


def test_the_pause_that_is_allowed_shrinks_with_the_foreground() -> None:
    """Not quite two seconds are nothing in a foreground of ten, and all of one of two."""
    pause = [*quick(3, 11, "optimizer"), *quick(12.75, 22, "optimizer")]
    assert codes(*pause) == ()

    ours = foreground(progress_events=steps(200, 11.0, 13.0))
    ours = replace(ours, epochs=(replace(ours.epochs[0], elapsed_s=13.0),))
    found = judge(evidence(foreground=ours, background=background(progress_events=tuple(pause))))
    assert "too_little_overlap" in found.codes


def test_a_long_evaluation_that_covers_the_foreground_has_no_step_of_it() -> None:
    """As long as the one before, so it counts as training; the step behind it had not begun."""
    told = [ProgressEvent(at, 100, "phase", phase) for at in (2.0, 22.0) for phase in ("evaluate", "train")]
    told = [replace(one, elapsed_s=one.elapsed_s + 12.0 * (one.phase == "train")) for one in told]
    events = sorted([*quick(1, 2), *quick(14.1, 21.9), *quick(34.1, 36), *told], key=lambda one: one.elapsed_s)
    ours = foreground(progress_events=steps(200, 23.0, 33.0))
    ours = replace(ours, epochs=(replace(ours.epochs[0], elapsed_s=33.0),))
    seen = evidence(foreground=ours, background=background(progress_events=tuple(events)))

    assert overlap(seen) == (1.0, 0)


def is_training(
    *lengths_s: float, of_s: float, start_s: float = 10.0, kind: str = "optimizer", **changes: object
) -> bool:
    """Whether all strides of a length count, of a background that makes steps of these lengths from a time on.

    The foreground trains from 10 to 20 s, and nothing of it may be left free, so that no pause is believed for that.
    """
    at = [start_s + sum(lengths_s[:place]) for place in range(len(lengths_s) + 1)]
    phase = "train" if kind == "step" else None
    member = background(progress_events=tuple(ProgressEvent(one, 100, kind, phase) for one in at))
    seen = evidence(background=member, limits=JudgedLimits(LIMIT_BYTES, GPU_BYTES, overlap=1.0), **changes)
    counted = [one.length_s for one in strides(seen, member, (10.0, 20.0))]
    return sum(one == pytest.approx(of_s) for one in counted) == lengths_s.count(of_s)


@pytest.mark.parametrize(("pause_s", "counts"), [(9.9, True), (10.1, False)])
def test_a_phase_may_stand_still_for_twenty_usual_steps_and_five_seconds(pause_s: float, counts: bool) -> None:
    """Behind the foreground, where every stride counts that is no pause."""
    lengths = (*[QUICK_S] * 10, pause_s, *[QUICK_S] * 10)

    assert is_training(*lengths, of_s=pause_s, start_s=21.0, kind="step") is counts


@pytest.mark.parametrize(("length_s", "counts"), [(0.99, True), (1.01, False)])
def test_a_busy_machine_excuses_gaps_of_a_second_and_no_more(length_s: float, counts: bool) -> None:
    """However long the foreground and the samples are without a sign: here three seconds."""
    busy = {
        "foreground": foreground(progress_events=steps(200, 10.0, 20.0)[::3]),
        "trace": trace(*[230] * 8, interval_s=3),
    }
    lengths = (*[0.125] * 24, length_s, *[0.125] * 24)

    assert is_training(*lengths, of_s=length_s, **busy) is counts


@pytest.mark.parametrize(("inside_s", "counts"), [(2.95, True), (3.05, False)])
def test_half_as_long_again_as_one_outside_the_foreground_is_alike(inside_s: float, counts: bool) -> None:
    lengths = (2.0, *[QUICK_S] * 16, inside_s, *[QUICK_S] * 16)

    assert is_training(*lengths, of_s=inside_s, start_s=7.0) is counts


@pytest.mark.parametrize(("times", "between", "counts"), [(3, 5, True), (3, 4, False), (2, 9, False)])
def test_three_long_strides_with_five_short_ones_to_each_are_a_habit(times: int, between: int, counts: bool) -> None:
    lengths = (*[QUICK_S] * between, 1.5) * times

    assert is_training(*lengths, of_s=1.5) is counts


def test_the_foreground_trains_until_its_last_step() -> None:
    """A test behind its epoch's end, while the background stood still, was nobody's business."""
    ours = foreground(progress_events=(*steps(200, 10.0, 15.0), ProgressEvent(20.0, 200, "step", "test", 1)))
    ours = replace(ours, epochs=(replace(ours.epochs[0], elapsed_s=15.0),))
    stopped = background(progress_events=tuple(quick(3, 15.5)))

    assert "too_little_overlap" in judge(evidence(foreground=ours, background=stopped)).codes


def test_one_number_in_two_runs_is_two_processes() -> None:
    """In a PID namespace both have the number 2: the time between the end of one and the first step of the next is none
    of training, although it used to be one stride."""
    runs = (
        ProcessRun("training_1.log", 1.0, Exit(1, None, 12.0)),
        ProcessRun("training_2.log", 12.1, Exit(None, "SIGTERM", 23.0, stopped=True)),
    )
    events = (*quick(3, 11.9, pid=2), *quick(18, 22, pid=2))
    member: Member = background(progress_events=events, process_runs=runs)

    assert not any(one.earlier.elapsed_s < 12 < one.later.elapsed_s for one in neighbours(member))
    assert "too_little_overlap" in judge(evidence(background=member)).codes


def test_a_foreground_that_tells_nothing_trains_as_long_as_its_process_runs() -> None:
    silent = foreground(progress_events=(), epochs=())

    assert foreground_window(evidence(foreground=silent)) == (8.0, 21.0)
    assert foreground_window(evidence(foreground=replace(silent, held_gpu=False))) is None


def test_a_background_whose_allocators_gave_their_memory_back_is_no_load() -> None:
    told = ((2.0, 1500 * MIB), (9.0, 100 * MIB), (22.0, 0))
    missing = memory_missing_beside(evidence(background=background(held_at_least=told)))

    assert missing == "it held at most 100 MiB while the foreground trained, 1500 MiB before"
    kept = ((2.0, 1500 * MIB), (9.0, 400 * MIB), (22.0, 0))
    assert memory_missing_beside(evidence(background=background(held_at_least=kept))) is None
    short = (*told[:2], (14.0, 0))
    assert memory_missing_beside(evidence(background=background(held_at_least=short))) is None, "told of 4 s in 10"
