"""Groups of stand-in trainings, run by the real harness on a simulated GPU: each fault, and what comes of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
from fake_nvml import FakeNvml
from groups import RUN, group, judged, observing, training

from colocate.plan.catalog import Training
from colocate.process.procfs import with_cookie
from colocate.results.layout import GroupDirectory
from colocate.results.record import read_attempt, read_evidence, write_record
from colocate.units import MIB
from colocate.verdict.rules import Outcome, Verdict, judge

pytestmark = pytest.mark.slow

LOAD = training("load", "--hold", "1500", "--repeat")
EPOCH = training("epoch", "--hold", "700", "--steps", "20")


def load(*options: str) -> Training:
    return training("load", "--hold", "1500", "--repeat", *options)


def epoch(*options: str, **changes: Any) -> Training:
    return training("epoch", "--hold", "700", "--steps", "20", *options, **changes)


def outcome(fake: FakeNvml, folder: Path, foreground: Training, background: Training | None, **limits: Any) -> Verdict:
    """The verdict of a group, which must follow from the record and leave no process behind."""
    verdict = judged(group(foreground, background, **limits), fake.uuid(), folder)

    directory = GroupDirectory(folder / RUN / "group01")
    assert judge(read_evidence(directory)) == read_attempt(directory).verdict == verdict
    return verdict


def test_two_trainings_that_fit_are_feasible(fake_nvml, tmp_path):
    verdict = outcome(fake_nvml, tmp_path, EPOCH, LOAD)

    assert verdict.feasible, verdict
    assert verdict.peak_bytes == 2200 * MIB
    assert verdict.overlap == pytest.approx(1.0)
    fixed_s = read_evidence(GroupDirectory(tmp_path / RUN / "group01")).fixed_s
    assert fixed_s is not None
    assert fixed_s < 2, "looking, stopping, settling; the study waited 90 s per group whatever happened"


def test_a_training_that_tells_nothing_is_read_by_the_probe_and_its_exit_code(fake_nvml, tmp_path):
    """Beside one on the processor, which need not hold the GPU."""
    host = training("cpu", "--cpu", "--repeat", "--silent", "--probe", uses_gpu=False)
    verdict = outcome(fake_nvml, tmp_path, epoch("--silent", "--probe"), host)

    assert verdict.feasible, verdict
    assert "completion_by_exit_code" in [warning.code for warning in verdict.warnings]


INFEASIBLE = {
    "a peak over the limit": ("peak_over_limit", epoch("--hold", "6000"), LOAD),
    "a foreground that meets a full GPU": ("foreground_out_of_memory", epoch("--hold", "6700"), LOAD),
    "an out-of-memory in the background only": ("background_out_of_memory", EPOCH, load("--oom-at", "9")),
    "one that only the allocator saw": (
        "foreground_out_of_memory",
        epoch("--oom-swallowed", "--oom-silent", "--probe"),
        LOAD,
    ),
    "a foreground that fails": ("foreground_failed", epoch("--fail-at", "5"), LOAD),
}


@pytest.mark.parametrize(("code", "foreground", "background"), INFEASIBLE.values(), ids=INFEASIBLE)
def test_proof_that_a_group_does_not_fit(fake_nvml, tmp_path, code, foreground, background):
    verdict = outcome(fake_nvml, tmp_path, foreground, background)

    assert verdict.outcome is Outcome.INFEASIBLE, verdict
    assert code in verdict.codes


INCONCLUSIVE: dict[str, tuple[str, Training, Training, dict[str, Any]]] = {
    "a stub that exits 0 at once, again and again": (
        "background_gave_up",
        EPOCH,
        training("stub", "--stub", "--step-s", "0.05"),
        {},
    ),
    "a crash loop": ("background_gave_up", EPOCH, load("--die-at", "1"), {}),
    "a background that is never ready": (
        "background_never_ready",
        EPOCH,
        training("idle", "--never-ready", ready_timeout_s=1.0),
        {},
    ),
    "a background that is gone while the foreground trains": (
        "too_little_overlap",
        epoch("--steps", "100"),
        load("--hang-at", "12"),
        {"stall_s": 30},
    ),
    "a hang": ("foreground_hang", epoch("--hang-at", "5"), LOAD, {"stall_s": 1.0}),
    "a time limit": ("foreground_timeout", epoch("--steps", "1000"), LOAD, {"epoch_timeout_s": 1.5}),
    "a foreground that never reaches the GPU": (
        "foreground_not_started",
        training("stub", "--stub", "--step-s", "0.05"),
        LOAD,
        {},
    ),
    "a foreground that was told to cut its epoch": ("epoch_cut", epoch("--full-steps", "400"), LOAD, {}),
}


@pytest.mark.parametrize(("code", "foreground", "background", "limits"), INCONCLUSIVE.values(), ids=INCONCLUSIVE)
def test_evidence_with_a_hole_is_inconclusive(fake_nvml, tmp_path, code, foreground, background, limits):
    verdict = outcome(fake_nvml, tmp_path, foreground, background, **limits)

    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict
    assert code in verdict.codes


def test_a_foreign_process_on_the_gpu_keeps_the_group_from_starting(fake_nvml, foreign_process, tmp_path):
    fake_nvml.foreign(500 * MIB, pid=foreign_process)
    verdict = outcome(fake_nvml, tmp_path, EPOCH, LOAD)

    assert verdict.codes == ("foreign_process",)
    assert not read_evidence(GroupDirectory(tmp_path / RUN / "group01")).foreground.process_runs


def test_a_program_that_is_not_there_starts_nothing(fake_nvml, tmp_path):
    absent = replace(EPOCH, argv=("/nowhere/python", "train.py"))
    verdict = outcome(fake_nvml, tmp_path, absent, LOAD)

    assert verdict.codes == ("not_started",)
    assert "/nowhere/python" in str(verdict)


def test_an_interrupted_group_is_recorded_as_such(fake_nvml, tmp_path):
    with observing(group(EPOCH, LOAD), fake_nvml.uuid(), tmp_path) as observation:
        observation.preflight()
        observation.start_background()
        verdict = observation.interrupt("SIGINT")

    assert verdict.codes == ("interrupted",)
    assert with_cookie(f"{RUN}/group01") == []


def test_a_record_that_lost_samples_is_not_judged_as_if_it_were_whole(tmp_path):
    directory = GroupDirectory(tmp_path / "group01").create()
    assert write_record(directory, group(EPOCH, LOAD), builders.evidence(), [], "run_1").feasible
    text = directory.trace.read_text()
    directory.trace.write_text(text[: len(text) // 2])

    assert judge(read_evidence(directory)).codes == ("record_damaged",)
