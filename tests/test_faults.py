"""Faults around a group, with real processes on a simulated GPU: attribution, orphans, retries, quarantine, peaks."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import GRAPHICS, FakeNvml
from groups import RUN, STAND_IN, group, judged, observe, observing, training
from waiting import wait_until

from colocate.device.base import DeviceProcess, Vitals
from colocate.device.quarantine import Quarantine
from colocate.harness.gpu_processes import GpuProcesses, unlisted
from colocate.harness.throttling import throttling
from colocate.plan.catalog import Training
from colocate.process.procfs import COOKIE, describe, identify, is_alive, with_cookie
from colocate.process.runner import Command, start
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.record import read_evidence
from colocate.units import MIB
from colocate.verdict.evidence import Evidence
from colocate.verdict.rules import Outcome, Verdict

pytestmark = pytest.mark.slow

MEMORY = "nvmlDeviceGetMemoryInfo_v2"


def load(*options: str, **changes: Any) -> Training:
    return training("load", "--hold", "1500", "--repeat", *options, **changes)


def epoch(*options: str, **changes: Any) -> Training:
    return training("epoch", "--hold", "700", "--steps", "20", "--probe", *options, **changes)


def outcome(
    fake: FakeNvml, folder: Path, foreground: Training, background: Training | None, **limits: Any
) -> tuple[Verdict, Evidence]:
    verdict = judged(group(foreground, background, **limits), fake.uuid(), folder)
    return verdict, read_evidence(GroupDirectory(folder / RUN / "group01"))


def warned(verdict: Verdict) -> dict[str, str]:
    return {warning.code: warning.text for warning in verdict.warnings}


@pytest.fixture
def accounting(fake_nvml):
    """A GPU whose driver keeps the peak of every process."""
    fake_nvml.state.gpus[0].accounting = 1
    return fake_nvml


# --- peaks between two samples


@pytest.mark.parametrize("source", ["accounting", "allocator"])
def test_a_spike_over_the_limit_between_two_samples_is_caught(fake_nvml, tmp_path, source):
    """6200 MiB for a moment beside 1500: 20 samples a second see 2200."""
    fake_nvml.state.gpus[0].accounting = int(source == "accounting")
    verdict, evidence = outcome(fake_nvml, tmp_path, epoch("--spike", "6200"), load())

    assert verdict.outcome is not Outcome.FEASIBLE
    if evidence.trace.peak.used_bytes == 2200 * MIB:  # type: ignore[union-attr]  # else a sample has hit it
        assert verdict.codes == ("peak_between_samples",)
        assert f"{source} of the foreground: 6200 MiB" in str(verdict)


# --- who is who


def test_a_training_that_daemonises_is_followed_and_proves_nothing(fake_nvml, tmp_path):
    """Its first process says 0 at once; the work is done by one of another session whose parent is gone."""
    verdict, _ = outcome(fake_nvml, tmp_path, epoch("--daemonise", "--steps", "500"), load())

    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict
    assert "foreground_detached" in verdict.codes
    assert fake_nvml.used_bytes() == 0


def test_two_runs_that_began_in_the_same_second_do_not_take_each_others_trainings_for_their_own():
    """The name of a run is its second; on two GPUs their groups had the same cookies."""
    first, second = (GpuProcesses("run_20261124_053000", "group01", Path(place)) for place in ("/a/group", "/b/group"))

    assert first.cookie("foreground") != second.cookie("foreground")
    assert first.cookie("foreground").startswith("run_20261124_053000/group01/foreground/")


def test_a_number_that_is_used_again_is_another_process(foreign_process, monkeypatch):
    gpu_processes = GpuProcesses("run", "group01")
    gpu_processes.take([(1.0, (DeviceProcess(foreign_process, 100),))], {})
    later = identify(foreign_process)
    assert later is not None
    monkeypatch.setattr("colocate.process.procfs.identify", lambda pid: later._replace(start_time=later.start_time + 9))
    gpu_processes.take([(1.0, ()), (2.0, (DeviceProcess(foreign_process, 300),))], {})

    assert [(gpu_process.first_s, gpu_process.max_used_bytes) for gpu_process in gpu_processes.seen] == [
        (1.0, 100),
        (2.0, 300),
    ]


def test_in_a_container_with_the_hosts_numbers_nobody_is_accused(foreign_process, monkeypatch):
    """4 000 001 does not exist here, so the numbers are the host's, and one that exists here does so by chance."""
    monkeypatch.setattr("colocate.process.procfs.sees_all_processes", lambda: False)
    gpu_processes = GpuProcesses("run", "group01")
    listed = (DeviceProcess(4_000_001, 100), DeviceProcess(foreign_process, 300))
    gpu_processes.take([(1.0, listed)], {})

    assert [gpu_process.owner for gpu_process in gpu_processes.seen] == ["unknown", "unknown"]
    assert not gpu_processes.attributed


def test_what_is_odd_about_a_sound_group_is_told_beside_its_verdict(accounting, foreign_process, tmp_path):
    """A desktop, memory that nobody accounts for, heat, a spike between two samples, a child that stays with memory.

    And an orphan of an earlier run, which is ended: its supervisor and its harness are gone.
    """
    gpu = accounting.state.gpus[0]
    gpu.baseline_bytes = 900 * MIB
    gpu.throttle_reasons = 0x20 | 0x01  # heat, beside a reason that says nothing of the kind
    accounting.foreign(400 * MIB, pid=foreign_process, flags=GRAPHICS)
    environment = {**os.environ, **accounting.environment, COOKIE: "run_old/group03/background"}
    argv = [sys.executable, str(STAND_IN), "--hold", "900", "--hang-at", "1"]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL) as left:
        wait_until(lambda: accounting.used_bytes() == 2200 * MIB)
        verdict, evidence = outcome(
            accounting, tmp_path, epoch("--spike", "1700", "--fork", "--steps", "60"), load(), settle_s=3.0
        )
        assert left.wait(60) == -signal.SIGTERM
    told = warned(verdict)

    assert verdict.feasible, verdict
    assert evidence.baseline_bytes == 1300 * MIB
    assert "900 MiB were in use before the group" in told["unexplained_baseline"]
    assert f"pid {left.pid} " in told["orphan_ended"]
    assert "stand_in.py" in told["leftovers"]
    assert {one.owner for one in evidence.gpu_processes} <= {"foreground", "background", "desktop"}
    assert verdict.peak_bytes == 4550 * MIB, "its child holds 50"
    if evidence.trace.peak.used_bytes == 3550 * MIB:  # type: ignore[union-attr]  # else a sample has hit it
        assert "the samples missed 1000 MiB" in told["spike"]
    assert re.search(r"in (\d+) of \1 readings \(heat \1 times\)", told["throttled"])
    assert (tmp_path / RUN / "group01/energy/gpu_throttling.csv").read_text().splitlines()[1].endswith(",33")
    assert accounting.used_bytes() == 1300 * MIB


def test_a_process_with_the_gpu_open_but_not_on_the_list_is_found(tmp_path):
    node = tmp_path / "nvidia0"
    node.touch()
    with node.open() as file, subprocess.Popen(["sleep", "60"], stdin=file) as process:
        found = [one.pid for one in unlisted((), str(tmp_path / "nvidia"))]
        listed = unlisted((DeviceProcess(process.pid, None),), str(tmp_path / "nvidia"))
        process.kill()

    assert found == [process.pid]
    assert listed == []


def test_a_member_that_uses_another_gpu_too_is_noticed(fake_nvml, tmp_path):
    fake_nvml.add_gpu()
    verdict, _ = outcome(fake_nvml, tmp_path, epoch("--steps", "60"), load("--also-on", "1"))

    assert verdict.codes == ("other_gpu",)
    assert fake_nvml.uuid(1) in str(verdict)


@pytest.mark.parametrize("who", ["foreground", "background"])
def test_a_member_on_another_gpu_is_noticed_however_short_the_group_is(fake_nvml, tmp_path, who):
    """Lists of processes come every five seconds, and the probe tells how much a program holds, not where."""
    fake_nvml.add_gpu()
    members = {"foreground": epoch("--steps", "70"), "background": load("--probe", ready_timeout_s=3.0)}
    away = members[who]
    members[who] = replace(away, argv=("env", f"CUDA_VISIBLE_DEVICES={fake_nvml.uuid(1)}", *away.argv))
    with observing(group(**members), fake_nvml.uuid(), tmp_path, listed_every_s=5.0) as observation:
        verdict = observe(observation)

    assert "other_gpu" in verdict.codes, verdict


def test_a_foreground_on_a_gpu_that_no_list_of_ours_shows_left_no_trace(fake_nvml, tmp_path, monkeypatch):
    """As in a container with two GPUs, where the driver tells the host's numbers."""
    monkeypatch.setattr(GpuProcesses, "ours", lambda *_: None)
    monkeypatch.setattr(GpuProcesses, "_owner", lambda *_: "unknown")
    fake_nvml.add_gpu()
    away = replace(epoch(), argv=("env", f"CUDA_VISIBLE_DEVICES={fake_nvml.uuid(1)}", *epoch().argv))
    verdict, _ = outcome(fake_nvml, tmp_path, away, load())

    assert verdict.codes == ("foreground_off_gpu",)


def test_a_foreign_process_that_takes_the_last_memory_between_two_lists_is_no_proof(
    fake_nvml, foreign_process, tmp_path
):
    greedy = epoch("--steps", "60", "--peak", "1300")
    with observing(group(greedy, load(), settle_s=0.2), fake_nvml.uuid(), tmp_path, listed_every_s=5.0) as observation:
        came = threading.Timer(0.9, fake_nvml.foreign, (5700 * MIB,), {"pid": foreign_process})
        verdict = observe(observation, came.start)

    assert observation.evidence().foreground.out_of_memory, "or it would prove nothing"
    assert verdict.codes == ("foreign_process",)


def test_a_zombie_with_memory_is_named_as_one(fake_nvml, tmp_path):
    with subprocess.Popen(["true"]) as zombie:
        wait_until(lambda: "zombie" in describe(zombie.pid))
        fake_nvml.foreign(500 * MIB, pid=zombie.pid)
        verdict, _ = outcome(fake_nvml, tmp_path, epoch(), load())

    assert verdict.codes == ("foreign_process",)
    assert "state Z (zombie)" in str(verdict)


# --- sensors


@pytest.mark.parametrize("code", [18, 999], ids=["library-mismatch", "unknown-error"])
def test_a_sensor_that_fails_from_now_on_lets_the_training_finish(fake_nvml, tmp_path, code):
    with observing(group(epoch("--steps", "60"), load(), longest_gap_s=0.4), fake_nvml.uuid(), tmp_path) as observation:
        verdict = observe(observation, threading.Timer(0.4, fake_nvml.fail, (MEMORY, code)).start)
        evidence = observation.evidence()

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "sensor_gap" in verdict.codes
    assert evidence.foreground.last_exit.ok  # type: ignore[union-attr]


def test_a_gpu_that_tells_no_processes_is_judged_by_its_level(fake_nvml, tmp_path):
    fake_nvml.fail("nvmlDeviceGetComputeRunningProcesses*", 3)
    verdict, evidence = outcome(fake_nvml, tmp_path, epoch(), load())

    assert verdict.feasible, verdict
    assert evidence.gpu_processes == ()


# --- what an earlier run has left


def test_a_training_of_another_run_that_goes_on_is_not_touched_and_may_be_waited_for(fake_nvml, tmp_path, monkeypatch):
    monkeypatch.setattr("colocate.harness.device_state.LEFTOVERS_S", 0.2)
    (tmp_path / "logs").mkdir()
    argv = (sys.executable, str(STAND_IN), "--hold", "900", "--hang-at", "1")
    command = Command(argv, tmp_path, {**os.environ, **fake_nvml.environment})
    with start(command, log=tmp_path / "logs/other.log", cookie="run_other/group01/background") as other:
        wait_until(lambda: fake_nvml.used_bytes() == 900 * MIB)
        verdict, _ = outcome(fake_nvml, tmp_path, epoch(), load())
        assert is_alive(other.id)
        assert verdict.codes == ("foreign_process",)

        threading.Timer(0.5, other.stop, (0.0,)).start()
        with observing(group(epoch(), load()), fake_nvml.uuid(), tmp_path / "again") as it:
            it.preflight(wait_s=10.0)
            it.start_background()
            it.run_foreground()
            assert it.conclude().feasible, "one that was waited for spoils nothing"


# --- GPUs that are left alone


@pytest.mark.parametrize("way", ["leak", "lost"])
def test_a_gpu_in_a_bad_state_is_quarantined(fake_nvml, tmp_path, way):
    quarantine = Quarantine(RunDirectory(tmp_path / RUN).quarantine)
    foreground = epoch("--steps", "40", *(["--leak"] if way == "leak" else []))
    lose = (lambda: fake_nvml.fail(MEMORY, 15)) if way == "lost" else (lambda: None)
    verdict = judged(group(foreground, load(), settle_s=0.5), fake_nvml.uuid(), tmp_path, lose)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert {"leak": "gpu_not_returned", "lost": "sensor_lost"}[way] in verdict.codes
    assert quarantine.why(fake_nvml.uuid()) is not None
    assert quarantine.why("GPU-other") is None


def test_a_gpu_with_a_process_that_cannot_be_ended_is_quarantined(fake_nvml, tmp_path):
    """`test_supervisor` has the real process that survives SIGKILL; here is what follows from it."""
    quarantine = Quarantine(RunDirectory(tmp_path / RUN).quarantine)
    with observing(group(epoch(), load()), fake_nvml.uuid(), tmp_path) as observation:
        observation.preflight()
        observation.start_background()
        observation.run_foreground()
        ourselves = identify(os.getpid())
        assert ourselves is not None
        observation._foreground.processes[0].unkillable = (ourselves,)
        verdict = observation.conclude()

    assert verdict.codes == ("unkillable",)
    assert quarantine.why(fake_nvml.uuid()) == "a process on it could not be ended"


# --- the disk


def test_a_log_that_cannot_be_written_ends_the_group(fake_nvml, tmp_path, monkeypatch):
    """/dev/full refuses every byte, as a full disk does; the background goes with the foreground."""
    with observing(group(epoch("--steps", "2000"), load()), fake_nvml.uuid(), tmp_path) as observation:
        observation.directory.foreground_log.symlink_to("/dev/full")
        verdict = observe(observation)

    assert verdict.codes == ("log_failed",)
    assert with_cookie(f"{RUN}/group01") == []


def test_a_gpu_that_idles_or_obeys_its_owner_is_not_told_as_slowed_down():
    readings = [(float(at_s), 1e9, Vitals(throttle_reasons=reasons)) for at_s, reasons in enumerate((1, 2, 0x100, 4))]

    assert throttling(readings, 0.0, 2.0) is None
    assert throttling([(1.0, 1e9, Vitals())], 0.0, 2.0) is None
    assert throttling(readings, 0.0, 3.0) == "in 1 of 4 readings (power limit 1 times)"


BOMB = (sys.executable, "-I", "-S", str(STAND_IN.with_name("proc_member.py")), "bomb", "300")


@pytest.mark.parametrize("who", ["foreground", "background"])
def test_a_fork_bomb_is_ended_not_started_again_and_proves_nothing(fake_nvml, tmp_path, who):
    members = {"foreground": epoch(), "background": load(), who: training("bomb", argv=BOMB)}
    verdict, evidence = outcome(fake_nvml, tmp_path, **members, max_processes=50)

    assert (verdict.outcome, verdict.codes) == (Outcome.INCONCLUSIVE, ("too_many_processes",))
    assert evidence.returned_to_baseline
    bomb = next(one for one in evidence.members if one.role == who)
    assert len(bomb.process_runs) == 1
