"""What is kept alive: scripted lives against the policy, and real processes that end again and again."""

from itertools import pairwise
from typing import Any

import pytest
from members import Begin
from waiting import wait_until

from colocate.errors import TrainingError
from colocate.process.exit_status import Exit
from colocate.process.keep_alive import KeepAlive, RestartPolicy
from colocate.process.runner import Process, stop_all


class FakeProcess:
    """A life of a scripted length in a scripted time."""

    def __init__(self, clock: "FakeClock", lived_s: float, code: int) -> None:
        self.started_t = clock.now
        self.exit: Exit | None = None
        self.too_many: str | None = None
        self._clock = clock
        self._end = Exit(code=code, signal=None, ended_s=clock.now + lived_s)

    def poll(self) -> Exit | None:
        if self._clock.now >= self._end.ended_s:
            self.exit = self._end
        return self.exit


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def looped(
    *process_runs: tuple[float, int], policy: RestartPolicy | None = None, for_s: float = 10_000, ready: bool = True
) -> tuple[KeepAlive, list[float]]:
    """Play lives of (seconds, exit code), the last one for ever again, and tell when each was started."""
    clock, starts = FakeClock(), []

    def make(number: int) -> Any:
        starts.append(clock.now)
        return FakeProcess(clock, *process_runs[min(number, len(process_runs) - 1)])

    looping = KeepAlive(make, policy, clock=clock)
    looping.ready = ready
    while looping.gave_up is None and clock.now < for_s:
        looping.tend()
        clock.now += 0.25
    return looping, starts


def test_a_training_that_finishes_is_started_again_at_once_and_one_failure_is_survived() -> None:
    looping, starts = looped((60.0, 0), for_s=1000)
    assert looping.gave_up is None
    assert len(looping.process_runs) == 15
    assert {later - earlier for earlier, later in pairwise(starts)} <= {60.0, 60.25}

    looping, _ = looped((1.0, 1), (1.0, 1), (60.0, 0), (1.0, 1), (60.0, 0), for_s=1000)
    assert looping.gave_up is None
    assert len(looping.process_runs) > 10


@pytest.mark.parametrize(
    ("process_run", "options", "said", "starts_made"),
    [
        ((1.0, 1), {}, "3 exits in a row within 5 s of the start, the last of 3 process runs with exit code 1", 3),
        # The stub of a training, which a study restarted a hundred times.
        ((1.0, 0), {}, "3 exits in a row within 5 s of the start, the last of 3 process runs with exit code 0", 3),
        # On the virtual GPU a short clean life is no fault, and nothing used to bound their number.
        (
            (1.0, 0),
            {"policy": RestartPolicy(min_lifetime_s=0.0)},
            "1000 process runs are as many as a training may have, the last ended with exit code 0",
            1000,
        ),
        (
            (60.0, 1),
            {"policy": RestartPolicy(max_failures=5)},
            "6 of 6 process runs failed, the last with exit code 1",
            6,
        ),
        # Never seen to work: starting PyTorch takes longer than a quick exit, and eleven failures took four minutes.
        (
            (15.0, 1),
            {"ready": False, "policy": RestartPolicy(min_lifetime_s=0.0)},
            "3 of 3 process runs failed, the last with exit code 1",
            3,
        ),
    ],
)
def test_what_ends_again_and_again_is_given_up(
    process_run: tuple[float, int], options: dict[str, Any], said: str, starts_made: int
) -> None:
    looping, starts = looped(process_run, **options)

    assert (looping.gave_up, len(starts)) == (said, starts_made)
    assert looping.process_runs[-1].exit is not None


def test_the_delay_grows_to_a_limit_and_ends_with_a_good_life() -> None:
    policy = RestartPolicy(max_quick_exits=100, max_failures=100, max_delay_s=4.0)
    _, starts = looped(*[(1.0, 1)] * 6, (60.0, 0), policy=policy, for_s=200)

    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert pauses[:6] == [1.5, 2.0, 3.0, 5.0, 5.0, 5.0]
    assert pauses[6] == 60.0


def test_a_life_that_cannot_be_started_is_a_reason_to_give_up() -> None:
    clock = FakeClock()

    def make(number: int) -> Any:
        if number:
            raise TrainingError("train.py: expected a program, found none")
        return FakeProcess(clock, 60.0, 0)

    looping = KeepAlive(make, clock=clock)
    clock.now += 61
    looping.tend()

    assert looping.gave_up == "process run 1 could not be started: train.py: expected a program, found none"
    assert len(looping.process_runs) == 1


def test_a_real_background_that_fails_once_is_restarted_and_recorded(begin: Begin) -> None:
    def make(number: int) -> Process:
        return begin("out_of_memory") if number == 0 else begin("ignore_term")

    looping = KeepAlive(make, RestartPolicy(first_delay_s=0.05))

    def tended() -> bool:
        looping.tend()
        return len(looping.process_runs) == 2 and bool(
            looping.process_runs[1].matches or looping.process_runs[1].poll()
        )

    wait_until(tended)
    first, second = looping.process_runs
    assert first.exit is not None
    assert first.exit.code == 1
    assert first.match_counts["out of memory, raised: PyTorch (gpu)"] == 1
    assert second.exit is None
    looping.stop(grace_s=0.0)
    looping.tend()

    assert len(looping.process_runs) == 2
    assert looping.process_runs[-1].exit is not None
    assert looping.gave_up is None


def test_looping_members_are_stopped_together_with_others(begin: Begin) -> None:
    looping = KeepAlive(lambda number: begin("idle"))
    single = begin("idle")

    stop_all([looping, single])

    assert single.exit is not None
    assert looping.process_runs[-1].exit is not None
