"""Trainings and GPUs that do to the harness what no list foresees, with real processes on a simulated GPU."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import MIB, FakeNvml
from groups import RUN, STAND_IN, group, judged, observe, observing, training

from colocate.device import deadline
from colocate.errors import ColocateError
from colocate.plan.catalog import Training
from colocate.process.procfs import with_cookie
from colocate.verdict.rules import Outcome, Verdict

HOSTILE = str(STAND_IN.with_name("hostile.py"))

pytestmark = pytest.mark.slow


def hostile(what: str, *options: str, after_s: float = 0.3) -> Training:
    argv = (sys.executable, HOSTILE, what, "--hold", "700", "--probe", *options)
    return training("hostile", argv=argv, env={"HOSTILE_AFTER_S": str(after_s)})


def outcome(fake: FakeNvml, folder: Path, foreground: Training, background: Training, **limits: Any) -> Verdict:
    limits = {"stall_s": 2.0, "epoch_timeout_s": 20.0, **limits}
    return judged(group(foreground, background, **limits), fake.uuid(), folder)


def load(*options: str) -> Training:
    return training("load", "--hold", "1500", "--repeat", "--probe", *options)


def epoch(*options: str) -> Training:
    return training("epoch", "--hold", "700", "--steps", "40", "--probe", *options)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("device_events", "events_unreadable"),
        ("pipe_events", "events_unreadable"),
        ("folder_events", "events_unreadable"),
        ("many_probes", "events_unreadable"),
        ("pipe_log", "log_failed"),
        ("pipe_tail", "log_failed"),
        ("other_events", "events_mixed_up"),
        ("forged_probe", "implausible_record"),
        ("stop_self", "foreground_hang"),
        ("stop_supervisor", "foreground_hang"),
    ],
)
def test_a_foreground_that_attacks_its_own_record_proves_nothing(what, code, fake_nvml, tmp_path):
    began_t = time.monotonic()
    verdict = outcome(fake_nvml, tmp_path, hostile(what, "--steps", "40"), load())

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert code in verdict.codes
    assert time.monotonic() - began_t < 20  # a stopped supervisor used to cost 25 s


def test_a_pattern_that_backtracks_without_end_is_named_and_ends_the_group(fake_nvml, tmp_path):
    printed = "import runpy, sys; sys.argv = sys.argv[1:]; print('a' * 45 + '!', flush=True); "
    printed += "runpy.run_path(sys.argv[0], run_name='__main__')"
    whole = epoch("--steps", "1000")
    slow = replace(whole, argv=(sys.executable, "-c", printed, *whole.argv[1:]), progress_pattern="(a+)+$")
    verdict = outcome(fake_nvml, tmp_path, slow, load())

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.codes[0] == "slow_pattern"
    assert "(a+)+$" in verdict.reasons[0].text


def test_a_python_without_the_probe_is_missed_at_once(fake_nvml, tmp_path):
    """It swallows an out-of-memory, which used to be FEASIBLE; of its steps, which take 100 s, it makes some."""
    whole = epoch("--steps", "5000", "--oom-swallowed", "--oom-silent")
    blind = replace(whole, argv=(sys.executable, "-I", *[word for word in whole.argv[1:] if word != "--probe"]))
    began_t = time.monotonic()
    verdict = outcome(fake_nvml, tmp_path, blind, load(), stall_s=60.0, epoch_timeout_s=300.0)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "probe_lost" in verdict.codes, "what else was seen in its second depends on the machine"
    assert time.monotonic() - began_t < 90


@pytest.mark.parametrize("what", ["garbage", "future_probe", "pipe_probe"])
def test_nonsense_beside_sound_events_is_left_out_and_told(what, fake_nvml, tmp_path):
    verdict = outcome(fake_nvml, tmp_path, hostile(what, "--steps", "40"), load(), stall_s=60.0, epoch_timeout_s=300.0)

    assert verdict.feasible, verdict
    assert ("bad_events" in {warning.code for warning in verdict.warnings}) is (what == "garbage")


@pytest.mark.parametrize("after_s", [0.0, 1.5], ids=["before it began", "while it trains"])
def test_a_background_cannot_end_the_foregrounds_epoch(after_s, fake_nvml, tmp_path):
    """The foreground exits with 0 before its epoch is done; the background writes the missing line for it."""
    short = hostile("leave", "--steps", "1000", after_s=2.0)
    forger = hostile("other_events", "--repeat", after_s=after_s)
    with observing(group(short, forger, stall_s=5.0), fake_nvml.uuid(), tmp_path) as observation:
        verdict = observe(observation)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "events_mixed_up" in verdict.codes
    assert not {"foreground_failed", "foreground_not_started"} & set(verdict.codes)
    assert observation.evidence().foreground.last_exit.ok, "or it would prove nothing"
    assert with_cookie(f"{RUN}/group01") == []


def test_a_run_whose_folder_is_gone_says_so_in_words(fake_nvml, tmp_path):
    with pytest.raises(ColocateError, match="could not write the record of group01"):
        outcome(fake_nvml, tmp_path, hostile("remove_run", "--steps", "40"), load())

    assert with_cookie(f"{RUN}/group01") == []


def test_a_driver_that_never_answers_who_is_there_holds_nobody_up(fake_nvml, tmp_path, monkeypatch):
    """Only the list of processes hangs; the harness used to wait for it as long as the driver did."""
    monkeypatch.setattr(deadline, "ANSWER_S", 0.3)
    with observing(group(epoch(), load()), fake_nvml.uuid(), tmp_path) as observation:
        fake_nvml.block("nvmlDeviceGetComputeRunningProcesses*", 8.0)
        began_t = time.monotonic()
        verdict = observe(observation)

        assert time.monotonic() - began_t < 6
        assert verdict.codes == ("sensor_lost",)
        assert observation.gpu_fault is not None
        assert not observation.started
        fake_nvml.heal()


def test_a_gpu_whose_size_changes_is_not_believed(fake_nvml, tmp_path):
    def grow():
        fake_nvml.state.gpus[0].total_bytes = 16 * 1024 * MIB

    verdict = judged(group(epoch(), load(), longest_gap_s=0.5), fake_nvml.uuid(), tmp_path, grow)

    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "sensor_gap" in verdict.codes


@pytest.mark.parametrize("pid", [1, os.getpid()], ids=["init", "harness"])
def test_the_harness_itself_or_init_on_the_gpu_is_named(pid, fake_nvml, tmp_path):
    fake_nvml.foreign(100 * MIB, pid=pid)
    verdict = outcome(fake_nvml, tmp_path, epoch(), load())

    assert verdict.codes == ("foreign_process",)
    assert f"pid {pid} (" in verdict.reasons[0].text
