"""A group is tried again after what is nobody's finding about it, with real processes on a simulated GPU."""

import threading

import pytest
from fake_nvml import FakeNvml
from groups import RUN, group, observe, observing, training
from seen import note_verdict
from waiting import wait_until

from colocate.device.acquire import FoundGpu, opened
from colocate.harness.attempt import Retries, free_directory
from colocate.harness.group_run import GroupRun
from colocate.harness.sampler import Sampler
from colocate.plan.plan import Group
from colocate.process.procfs import with_cookie
from colocate.results.group_result import GroupResult
from colocate.results.layout import RunDirectory
from colocate.results.record import read_evidence
from colocate.units import MIB

pytestmark = pytest.mark.slow

LOAD = training("load", "--hold", "1500", "--repeat")


def epoch(steps=60):
    return training("epoch", "--hold", "700", "--steps", f"{steps}", "--probe")


def settle(fake: FakeNvml, folder, given: Group, meanwhile=lambda observation: None) -> GroupResult:
    """A group with what `Retries` makes of its first attempt, beside which something happens."""
    with observing(given, fake.uuid(), folder) as observation:
        beside = threading.Thread(target=meanwhile, args=(observation,))
        beside.start()
        observe(observation)
        found = Retries(given, observation._device, RunDirectory(folder / RUN), "test", 2).settle(observation)
        beside.join()
    note_verdict(found.verdict)
    return found


def repeated(found: GroupResult) -> str:
    """Why a group that came out well was run once more."""
    assert found.verdict.feasible, found.verdict
    return next(warning.text for warning in found.verdict.warnings if warning.code == "repeated")


def trains(observation: GroupRun) -> bool:
    return observation._foreground.num_steps > 2


def test_a_group_that_a_foreign_process_spoiled_is_repeated_once(fake_nvml, tmp_path, foreign_process):
    """Somebody comes while the first foreground trains, and leaves."""

    def visit(observation):
        wait_until(lambda: fake_nvml.used_bytes() >= 2200 * MIB)
        fake_nvml.foreign(500 * MIB, pid=foreign_process)
        wait_until(lambda: fake_nvml.used_bytes() < 2200 * MIB)
        fake_nvml.release(foreign_process)

    found = settle(fake_nvml, tmp_path, group(epoch(), LOAD), visit)
    first = read_evidence(found.attempts[0].directory)
    (foreign,) = [one for one in first.gpu_processes if one.owner == "foreign"]

    assert "foreign_process" in repeated(found)
    assert len(found.attempts) == 2
    assert 0 < foreign.first_s <= foreign.last_s


def test_a_foreign_process_that_stays_makes_it_inconclusive(fake_nvml, tmp_path, foreign_process):
    def come(observation):
        wait_until(lambda: trains(observation))
        fake_nvml.foreign(500 * MIB, pid=foreign_process)

    found = settle(fake_nvml, tmp_path, group(epoch(80), LOAD, settle_s=0.5), come)

    assert found.verdict.codes == ("foreign_process",)
    assert len(found.attempts) <= 2


def test_a_group_whose_supervisor_was_killed_is_repeated(fake_nvml, tmp_path):
    def kill(observation):
        wait_until(lambda: trains(observation))
        observation._foreground.processes[0]._supervisor.kill()

    assert "supervisor_lost" in repeated(settle(fake_nvml, tmp_path, group(epoch(50), LOAD), kill))
    assert with_cookie(f"{RUN}/group01") == []


def test_a_group_with_a_blind_sensor_is_repeated(fake_nvml, tmp_path):
    def block(observation):
        wait_until(lambda: trains(observation))
        fake_nvml.block("nvmlDeviceGetMemoryInfo_v2", 0.8, times=1)

    assert "sensor_gap" in repeated(settle(fake_nvml, tmp_path, group(epoch(), LOAD, longest_gap_s=0.6), block))


def test_a_group_that_is_to_run_several_times_does(fake_nvml, tmp_path):
    fake_nvml.state.gpus[0].accounting = 1
    several = Group("group01", 1, epoch(20), LOAD, group(epoch(), None).limits, runs=3)
    found = settle(fake_nvml, tmp_path, several)

    assert found.verdict.feasible, found.verdict
    assert [attempt.place for attempt in found.attempts] == [(1, 1), (2, 1), (3, 1)]
    (spread,) = [warning.text for warning in found.verdict.warnings if warning.code == "spread"]
    assert "3 runs peaked at 2200 MiB, 2200 MiB, 2200 MiB" in spread


def test_every_run_on_the_virtual_gpu_gets_a_new_one(tmp_path):
    given = group(*(training(name, "--probe", "--context=300", *more) for name, *more in (("a",), ("b", "--repeat"))))
    several = Group("group01", 1, given.foreground, given.background, given.limits, runs=2)
    directory = free_directory(RunDirectory(tmp_path), several, 1).create()
    gpu = opened(FoundGpu("virtual", total_bytes=8192 * MIB), directory.virtual_gpu, holder="a test")
    with gpu as device, Sampler(device) as monitor:
        monitor.wait_for_sample(60.0)
        with GroupRun(several, device, monitor, directory, plan="test") as observation:
            observe(observation)
            found = Retries(several, device, RunDirectory(tmp_path), "test", 0).settle(observation)

    assert found.verdict.basis == "predicted"
    assert [attempt.place for attempt in found.attempts] == [(1, 1), (2, 1)]
    assert len({attempt.evidence.device.uuid for attempt in found.attempts}) == 2
