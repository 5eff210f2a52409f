"""Is sharing worth it? Trainings whose speed together and alone is known, by evidence and as real processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from builders import evidence, foreground, predicted_evidence, steps
from fake_nvml import FakeNvml
from groups import group, training
from hypothesis import given
from hypothesis import strategies as st

from colocate.advice.solo_runs import FILE, SIDE_RUN, read_speedup, settle
from colocate.advice.speedup import (
    NOT_PREDICTED,
    GroupSpeedup,
    Pace,
    SoloRun,
    Speedup,
    compare,
    energy_between,
    group_speedup,
    paces,
    solo_run_of,
)
from colocate.device.acquire import FoundGpu, opened
from colocate.harness.attempt import AttemptRunner
from colocate.process.exit_status import Exit
from colocate.report.summary_csv import rows
from colocate.results.group_result import combine_attempts
from colocate.results.layout import RunDirectory
from colocate.results.trace_files import EnergyReading, read_energy
from colocate.verdict.evidence import Evidence, GpuProcess, ProcessRun, ProgressEvent


def pair() -> Evidence:
    """Foreground: 10 steps in 10 s. Background: a step a second beside it, from 3 to 22 s."""
    return evidence()


def solo_group(name: str, step_s: float, num: int = 10, **changes: object) -> SoloRun:
    known = {"duration_s": num * step_s, "finished": True, "paces": {"train": Pace(num, num * step_s)}}
    return SoloRun(name, **{**known, "epoch_steps": (num,), **changes})  # type: ignore[arg-type]


def test_the_same_work_one_after_the_other() -> None:
    """Alone the foreground takes 8 s, and a step of the background 0.4 s: together 10 s, else 8 + 10 times 0.4."""
    found = compare(pair(), (), solo_group("examples_mnist", 0.8), solo_group("resnet20", 0.4))

    assert isinstance(found, Speedup)
    assert found.together_s == 10
    assert found.background_steps == pytest.approx(10)
    assert found.sequential_s == pytest.approx(12)
    assert found.time_saved == pytest.approx(1 - 10 / 12)
    assert found.foreground_slowdown == pytest.approx(1.25)
    assert found.background_slowdown == pytest.approx(2.5)
    assert found.energy_saved is None


def test_several_runs_show_their_spread_and_sharing_that_costs_time_is_advised_against() -> None:
    found = group_speedup([(pair(), ())], solo_group("examples_mnist", 0.5), solo_group("resnet20", 0.3))
    assert str(found) == "don't: sharing takes 25% more time"

    slow, fast = (group_speedup([(pair(), ())], solo_group("a", step_s), solo_group("b", 0.3)) for step_s in (0.6, 1))
    unclear = replace(slow, runs=slow.runs + fast.runs)
    assert str(unclear) == "no clear gain: from 11% more to 23% less time"
    assert GroupSpeedup.from_json(json.loads(json.dumps(unclear.to_json()))) == unclear


def test_time_is_not_predicted() -> None:
    found = group_speedup([(predicted_evidence(1000, 1000), ())], solo_group("a", 1.0), solo_group("b", 1.0))

    assert found.unknown == NOT_PREDICTED
    assert not found.runs
    assert str(found).startswith("not known: time is not predicted")
    assert solo_run_of(predicted_evidence(1000, 1000), (), "") == NOT_PREDICTED


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [
        (
            solo_group("a", 1.0, 9),
            solo_group("b", 1.0),
            "did 1 epoch(s) of 9 steps alone and 1 epoch(s) of 10 steps together",
        ),
        (solo_group("a", 1.0, finished=False), solo_group("b", 1.0), "steps alone and 1 epoch(s)"),
        (
            solo_group("a", 1.0),
            solo_group("b", 1.0, paces={"evaluate": Pace(3, 3)}),
            "the phase train of b are not counted",
        ),
    ],
)
def test_what_is_not_the_same_work_is_not_compared(ours: SoloRun, theirs: SoloRun, why: str) -> None:
    found = group_speedup([(pair(), ())], ours, theirs)

    assert not found.runs
    assert why in str(found.unknown)
    crashed = replace(foreground(), process_runs=(ProcessRun("training.log", 8.0, Exit(1, None, 21.0)),))
    runs = [(evidence(foreground=crashed), ())]
    assert "shown to fit" in str(group_speedup(runs, solo_group("a", 1.0), solo_group("b", 1.0)))


# Counting steps.


@given(st.lists(st.tuples(st.sampled_from(["train", "evaluate"]), st.integers(1, 6)), min_size=1, max_size=8))
def test_every_step_is_counted_once_in_its_phase(phases: list[tuple[str, int]]) -> None:
    progress_events, now, made = [ProgressEvent(0.0, 1, "ready")], 0.0, {"train": 0, "evaluate": 0}
    for phase, num in phases:
        progress_events.append(ProgressEvent(now, 1, "phase", phase))
        for step in range(1, num + 1):
            now += 0.5
            progress_events.append(ProgressEvent(now, 1, "step", phase, step))
        made[phase] += num

    found = paces(progress_events, (0.0, now))
    halves = [paces(progress_events, (0.0, now / 3)), paces(progress_events, (now / 3, now))]

    for phase, num in made.items():
        if num:
            assert found[phase] == pytest.approx(Pace(num, num / 2))
            assert sum(half[phase].steps for half in halves if phase in half) == pytest.approx(num)

    assert paces((*steps(1, 0, 4), *steps(2, 4, 8)), (0.0, 8.0))["train"] == pytest.approx(Pace(8, 8)), "two processes"
    lines = [ProgressEvent(float(at), 1, "pattern") for at in range(5)]
    assert paces(lines, (0.0, 5.0)) == {}, "lines of a log say that it goes on, not how far it is"


# Energy.


def test_the_counter_is_read_between_two_readings_in_a_straight_line() -> None:
    readings = [EnergyReading(0.0, 100.0, 20.0), EnergyReading(10.0, 1100.0, 120.0), EnergyReading(20.0, 1300.0, 20.0)]

    assert energy_between(readings, (5.0, 15.0)) == pytest.approx(600)
    assert energy_between(readings, (5.0, 25.0)) is None, "nobody read it at the end"
    assert energy_between([*readings, EnergyReading(30.0, 5.0, 0.0)], (5.0, 15.0)) is None, "it began anew"
    assert energy_between([EnergyReading(at, None, None) for at in (0.0, 9.0)], (1.0, 2.0)) is None


def test_energy_is_the_gpu_s() -> None:
    """100 W together over 10 s; alone 60 W and 80 W."""
    readings = [EnergyReading(float(at), 100.0 * at, 25.0 if at < 1 else 100.0) for at in range(30)]
    ours = solo_group("examples_mnist", 0.8, energy_j=8 * 60.0)
    theirs = solo_group("resnet20", 0.4, energy_j=4 * 80.0)

    found = compare(pair(), readings, ours, theirs)

    assert isinstance(found, Speedup)
    assert found.together_j == pytest.approx(1000)
    assert found.sequential_j == pytest.approx(480 + 320)
    assert found.energy_saved == pytest.approx(-0.25)


# Real processes.


@pytest.mark.slow
def test_a_run_alone_beside_a_foreign_process_is_no_measure() -> None:
    """Slower by somebody else's doing, it would make sharing look better, and be remembered."""
    single = evidence(background=None)
    foreign = GpuProcess(4_000_000, "foreign", "somebody", 1.0, 9.0)

    assert isinstance(solo_run_of(single, (), ""), SoloRun)
    found = solo_run_of(replace(single, gpu_processes=(foreign,)), (), "")
    assert found == "examples_mnist alone: somebody else used the GPU: somebody, from 1.0 to 9.0 s"


def test_on_the_virtual_gpu_nothing_is_run_alone(tmp_path: Path) -> None:
    ours, load = training("ours", "--probe"), training("load", "--probe", repeat_args=("--repeat",))
    both, run, gpu = group(ours, load), RunDirectory(tmp_path / "run-virtual"), FoundGpu("virtual", total_bytes=2**33)
    attempt = AttemptRunner(run, "test", gpu).attempt(both)

    with opened(gpu, tmp_path / "gpu", holder="test") as device:
        found = settle(both, combine_attempts([attempt]), device)

    assert found == read_speedup(attempt.directory) == GroupSpeedup(unknown=NOT_PREDICTED)
    assert not run.side_run(SIDE_RUN).path.exists()


SLOWER = ("--probe", "--evaluate-steps", "4")


@pytest.mark.slow
def test_a_slowdown_that_is_known_is_found(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    """The foreground's steps take 25 ms alone and 40 together, the background's 25 and 50: one in 1.6, one in 2.

    So of the time one after the other 1 / 1.6 + 1 / 2 is used, and 1 - 1 / 1.125 = 11 % is saved.
    """
    ours = training("ours", *SLOWER, "--steps", "56", "--step-s", "0.025", "--shared-step-s", "0.04")
    load = training("load", *SLOWER, "--steps", "30", "--repeat", "--step-s", "0.025", "--shared-step-s", "0.05")
    load = replace(load, argv=tuple(word for word in load.argv if word != "--repeat"), repeat_args=("--repeat",))
    both, run, gpu = group(ours, load), RunDirectory(tmp_path / "run-worth"), FoundGpu("nvidia", fake_nvml.uuid())
    attempt = AttemptRunner(run, "test", gpu).attempt(both)

    with opened(gpu, tmp_path / "gpu", holder="test") as device:
        found = settle(both, combine_attempts([attempt]), device)
        again = settle(both, combine_attempts([attempt]), device)

    assert found.unknown is None, found.unknown
    (speedup,) = found.runs
    assert speedup.foreground_slowdown == pytest.approx(1.6, rel=0.15)
    assert speedup.background_slowdown == pytest.approx(2.0, rel=0.15)
    assert speedup.time_saved == pytest.approx(0.11, abs=0.1)
    assert speedup.together_j is not None
    assert read_energy(attempt.directory.energy)[0].power_w == 60.0
    assert len(list(run.side_run(SIDE_RUN).groups())) == 2, "the second time both were run already"
    assert again.runs == found.runs == read_speedup(attempt.directory).runs
    (row,) = rows(run)
    assert row["time_saved_low"] == row["time_saved_high"] == round(speedup.time_saved, 4)
    assert (attempt.directory.path / FILE).exists()
    assert [path.parent.name for path in run.path.glob("*/verdict.json")] == [attempt.directory.path.name]
