"""Sensors, backgrounds and neighbours that are not what they seem, with real processes on a simulated GPU."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import MIB, NOT_AVAILABLE, FakeNvml
from groups import RUN, group, observe, observing, training
from seen import note_verdict
from waiting import wait_until

from colocate.harness.attempt import Retries
from colocate.harness.group_run import GroupRun
from colocate.results.layout import RunDirectory
from colocate.verdict.rules import Outcome, Verdict

pytestmark = pytest.mark.slow

MEMORY = "nvmlDeviceGetMemoryInfo_v2"
LISTS = "nvmlDeviceGetComputeRunningProcesses_v3"


def load(*options: str) -> Any:
    return training("load", "--hold", "4000", "--repeat", *options)


def epoch(*options: str) -> Any:
    return training("epoch", "--hold", "3900", "--steps", "40", *options)


def judged(fake: FakeNvml, folder: Path, then: Callable[[], None] = lambda: None, *, listed: str = "told") -> Verdict:
    """4000 and 3900 MiB on a limit of 7500; ``then`` is done once the background is ready, undone at the end."""
    if listed == "without memory":
        fake.answer(LISTS, NOT_AVAILABLE)
    with observing(group(epoch(), load()), fake.uuid(), folder) as observation:
        observation.preflight()
        observation.start_background()
        then()
        observation.run_foreground()
        observation.stop()
        fake.heal()
        return observation.conclude()


@pytest.mark.parametrize("listed", ["told", "without memory"])
def test_a_sensor_that_stands_still_when_the_foreground_comes_is_not_believed(fake_nvml, tmp_path, listed):
    """It used to be FEASIBLE at 4000 MiB."""
    verdict = judged(fake_nvml, tmp_path, lambda: fake_nvml.answer(MEMORY, 4000 * MIB), listed=listed)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "sensor_contradicted" in verdict.codes


def test_a_driver_that_tells_another_unit_from_now_on_is_not_believed(fake_nvml, tmp_path):
    def switch() -> None:
        fake_nvml.answer(MEMORY, 7900)
        fake_nvml.answer(LISTS, 3900)

    verdict = judged(fake_nvml, tmp_path, switch)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "sensor_contradicted" in verdict.codes


def test_a_background_that_gave_its_memory_back_is_no_load(fake_nvml, tmp_path):
    """6500 + 6500 MiB on a GPU of 8 GiB used to be FEASIBLE: once it was ready, it held nothing any more."""
    foreground = training("epoch", "--hold", "6500", "--load-s", "1.5", "--steps", "30")
    background = training("load", "--hold", "6500", "--steps", "1000", "--repeat", "--release-at", "30")
    with observing(group(foreground, background), fake_nvml.uuid(), tmp_path) as observation:
        verdict = observe(observation)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "background_off_gpu" in verdict.codes


def test_a_foreground_that_somebody_kills_is_repeated_once(fake_nvml, tmp_path):
    """An administrator, earlyoom, the end of a job: it used to be INFEASIBLE (foreground_failed)."""
    plan_group = group(
        training("epoch", "--hold", "700", "--steps", "60"), training("load", "--hold", "900", "--repeat")
    )

    def kill(observation: GroupRun) -> None:
        wait_until(lambda: observation._foreground.num_steps > 2)
        os.kill(observation._foreground.processes[0].id.pid, signal.SIGKILL)

    with observing(plan_group, fake_nvml.uuid(), tmp_path) as observation:
        threading.Thread(target=kill, args=(observation,)).start()
        first = observe(observation)
        found = Retries(plan_group, observation._device, RunDirectory(tmp_path / RUN), "test", 2).settle(observation)
    note_verdict(found.verdict)

    assert first.codes == ("killed_from_outside",)
    assert "neither this harness nor" in str(first) or "cannot be read here" in str(first)
    assert found.verdict.feasible, found.verdict
    assert len(found.attempts) == 2


def test_a_process_that_cannot_be_seen_is_a_foreign_one(fake_nvml, tmp_path):
    """Of another user or container: the GPU used to count as free, with a note above 512 MiB only."""
    fake_nvml.foreign(300 * MIB)
    with observing(group(epoch(), load()), fake_nvml.uuid(), tmp_path) as observation:
        verdict = observe(observation)

    assert verdict.codes == ("foreign_process",)
    assert "pid 4000000, which cannot be seen from here" in str(verdict)
    assert not observation.started


def test_a_smaller_workspace_that_pytorch_tried_itself_is_no_out_of_memory(fake_nvml, tmp_path):
    """With cudnn.benchmark PyTorch catches the allocator's error and goes on; it used to be INFEASIBLE."""
    foreground = training("epoch", "--hold", "700", "--steps", "20", "--probe", "--workspaces", "3")
    with observing(group(foreground, None), fake_nvml.uuid(), tmp_path) as observation:
        verdict = observe(observation)

    assert verdict.feasible, verdict
    assert "PyTorch tried 3 smaller workspace(s)" in str([str(warning) for warning in verdict.warnings])
