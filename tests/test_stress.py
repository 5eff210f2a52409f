"""How much more memory a group would bear: the search, and what it finds for stand-ins whose memory is known."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import MIB, FakeNvml
from groups import group, training
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import Session, plan, run, stand_in

from colocate.advice.stress import MOST_TRIALS, BreakingPoint, Ending, Stress, stress
from colocate.device.acquire import FoundGpu, opened
from colocate.harness.attempt import attempt_on
from colocate.plan.plan import Group
from colocate.results.layout import RunDirectory
from colocate.results.record import Attempt
from colocate.units import GIB

STEP = 64 * MIB


# --- the search


def searched(ask: Callable[[int], Ending], most: int, first: int) -> BreakingPoint:
    search = BreakingPoint(lambda more: ask(more // STEP), STEP, most * STEP, first * STEP)
    search.find()
    return search


def steady(breaking_point: int) -> Callable[[int], Ending]:
    """Steps of which those below the breaking point hold."""
    return lambda place: Ending.HOLDS if place < breaking_point else Ending.BREAKS


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_the_two_ends_meet_at_the_breaking_point_wherever_it_is(data: Any) -> None:
    most = data.draw(st.integers(1, 400))
    breaking_point = data.draw(st.integers(1, most))
    search = searched(steady(breaking_point), most, data.draw(st.integers(0, 500)))

    assert search.unfinished is None
    assert search.holds_bytes == (breaking_point - 1) * STEP
    assert search.breaks_bytes == (breaking_point * STEP if breaking_point < most else None)


@given(st.integers(1, 1000), st.integers(-1, 1))
@settings(deadline=None)
def test_a_guess_that_is_nearly_right_takes_few_trials(breaking_point: int, off: int) -> None:
    search = searched(steady(breaking_point), 2000, breaking_point + off)

    assert search.asked <= 5


def test_a_spoiled_trial_is_repeated_once_and_two_end_the_search_with_what_is_known() -> None:
    answers = iter([Ending.SPOILED, Ending.HOLDS, Ending.BREAKS])
    search = searched(lambda more: next(answers), 100, 10)
    assert (search.holds_bytes, search.breaks_bytes) == (10 * STEP, 11 * STEP)

    answers = iter([Ending.HOLDS, Ending.SPOILED, Ending.SPOILED])
    search = searched(lambda more: next(answers), 100, 10)
    assert (search.holds_bytes, search.breaks_bytes) == (10 * STEP, None)
    assert search.unfinished == "two trials in a row were spoiled"

    assert searched(lambda more: Ending.HOLDS, 10**6, 1).asked <= MOST_TRIALS + 1, "it never agrees with itself"


# --- real trials of stand-ins


def pair(foreground: int, background: int, *more: str) -> Group:
    steps = ("--steps", "8", "--context", "100", "--probe", *more)
    return group(
        training("epoch", "--hold", f"{foreground}", *steps),
        training("load", "--hold", f"{background}", *steps, repeat_args=("--repeat",)),
        settle_s=3.0,
    )


def found(gpu: FoundGpu, group: Group, folder: Path, resolution_bytes: int) -> tuple[Stress, Attempt]:
    directory = RunDirectory(folder / f"run-{os.getpid()}")
    with opened(gpu, folder / "gpu", holder="test", run=directory.name) as device:
        first = attempt_on(device, group, directory, plan="test")
        assert first.verdict.feasible, first.verdict
        answer = stress(device, group, first, plan="test", resolution_bytes=resolution_bytes)
    assert Stress.read(first.directory) == answer
    return answer, first


@pytest.mark.slow
def test_on_the_virtual_gpu_the_distance_is_the_arithmetic(tmp_path: Path) -> None:
    answer, first = found(FoundGpu("virtual", total_bytes=4 * GIB), pair(1000, 1500), tmp_path, 8 * MIB)

    room = 4 * GIB - (first.evidence.baseline_bytes or 0) - 2500 * MIB
    assert answer.basis == "predicted"
    assert 0 <= room - answer.holds_bytes < 8 * MIB
    assert answer.breaks_bytes == answer.holds_bytes + 8 * MIB
    assert len(answer.trials) <= 3
    assert "ran out of memory" in answer.broke_by


@pytest.mark.slow
def test_on_a_gpu_a_balloon_takes_the_rest(large_gpu: FakeNvml, tmp_path: Path) -> None:
    gpu = FoundGpu("nvidia", large_gpu.uuid(), 8 * GIB)
    answer, _ = found(gpu, pair(2000, 3000), tmp_path, 64 * MIB)

    assert answer.basis == "measured"
    assert answer.gpu_bytes == 8 * GIB
    assert 0 <= 8 * GIB - 5000 * MIB - answer.holds_bytes < 64 * MIB
    assert (answer.needed_bytes, answer.memory_class) == (8 * GIB - answer.holds_bytes, "high-risk")
    assert large_gpu.used_bytes() == 0


@pytest.mark.slow
def test_on_a_whole_gpu_too_and_it_says_what_it_cannot_try(fake_cuda: FakeNvml, tmp_path: Path) -> None:
    fake_cuda.add_gpu(total_bytes=6 * GIB, reserved_bytes=0)
    gpu = FoundGpu("nvidia", fake_cuda.uuid())
    far, _ = found(gpu, pair(2000, 3000), tmp_path, 64 * MIB)
    near, _ = found(gpu, pair(2500, 3400), tmp_path / "near", 64 * MIB)

    assert far.holds_bytes == (6 * GIB - 5000 * MIB) // STEP * STEP
    assert near.holds_bytes == 0
    assert near.unfinished == "192 MiB or less cannot be taken: the balloon's context is larger"


# --- as a user asks for it


def session(folder: Path, *options: str) -> Session:
    steps = ("--steps=12", "--context=100", "--probe")
    members = {
        "foreground": stand_in("--hold=1000", *steps),
        "background": stand_in("--hold=1500", "--repeat", *steps),
    }
    return run(plan(folder / "plan.json", [members]), folder, "--device=virtual", "--gpu=4GB", *options)


@pytest.mark.slow
def test_the_answer_is_shown_wherever_the_verdict_is(tmp_path: Path) -> None:
    done = session(tmp_path, "--stress=32MB")
    (stored,) = (json.loads(path.read_text()) for path in done.run.glob("*/stress.json"))
    breaking_point = stored["holds_bytes"] // MIB

    assert done.code == 0, done.output
    assert re.search(rf"group01 FEASIBLE \(predicted\) .*\n +stress: held with {breaking_point} MiB less", done.output)
    assert "Distance to the breaking point" in done.page
    assert f"{breaking_point} MiB" in done.page
    assert f",{breaking_point}.0," in (done.run / "summary.csv").read_text()
    assert len(done.verdicts) == 1, "trials are no groups of the run"
    assert list(done.run.glob("run_*_stress/*/verdict.json"))

    refused = session(tmp_path, "--stress=1MB")
    assert refused.code == 4
    assert "expected at least 2 MiB, got '1MB'" in refused.output, "which no driver has"
