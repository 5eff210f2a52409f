"""`colocate.advice.proposal_forecasts`: what proposals are predicted to bring, and the file in which it is kept."""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import builders
import pytest
import sessions
from emulated import PROGRAMS
from groups import group, training

from colocate.advice import predictor as predictor_module
from colocate.advice import proposal_forecasts
from colocate.advice.forecast import Answer
from colocate.advice.predictor import Abandoned, Behind, Predictor
from colocate.advice.proposal_forecasts import advise, forecasts_of_proposals, gpu_of
from colocate.advice.proposals import Kind, proposals
from colocate.cli.main import main
from colocate.harness.simulation import Program, SimulatedRun
from colocate.plan.gpu_models import gpu_model
from colocate.plan.plan import Group, load_plan
from colocate.plugin.signals import Interruption
from colocate.results import advice_files
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.record import write_record
from colocate.units import MIB
from colocate.verdict.evidence import Evidence
from colocate.verdict.predicted_peak import PeakRange


@dataclass
class Scripted(Predictor):
    """A program wants 350 MiB and 300 for each sample of its ``--bs``; what was asked is kept."""

    asked: list[int] = field(default_factory=list)
    failing: tuple[int, ...] = ()

    def simulated(self, programs: Iterable[Program], tell: Any = None) -> None:
        for program in programs:
            if program in self.known or self.is_over:
                continue
            size = int(program.argv[program.argv.index("--bs") + 1]) if "--bs" in program.argv else 1
            self.asked.append(size)
            self.known[program] = dry_run(program, 350 + 300 * size)
            if size in self.failing:
                self.known[program] = replace(dry_run(program, 1), peak=None, failure="failed")


def dry_run(program: Program, mib: int) -> SimulatedRun:
    return SimulatedRun(program.name, program.argv, 1.0, peak=PeakRange((mib - 50) * MIB, mib * MIB, (mib + 50) * MIB))


def predictor(**changes) -> Scripted:
    return Scripted(**{"gpu": gpu_model("8GB"), **changes})


def too_large(batch: int = 64) -> tuple[Group, Evidence]:
    """A foreground that wants 350 MiB and 300 more for every sample, beside a background of 850 MiB."""
    given = group(training("fore", "--bs", str(batch), "--accumulate", "1"), training("back"))
    return given, builders.predicted_evidence(300 * batch, 500)


def test_the_largest_batch_that_is_predicted_to_fit_is_the_one_to_take() -> None:
    given, evidence = too_large()
    asking = predictor()
    batch, *_ = forecasts_of_proposals(given, evidence, proposals(given, evidence, None), None, asking)
    assert batch.answer is Answer.FITS
    assert batch.step is not None
    assert batch.step.override.options == {"--bs": 16, "--accumulate": 4}
    assert batch.forecast is not None
    assert batch.forecast.peak is not None
    assert batch.forecast.peak.expected_bytes == (230 + 350 + 300 * 16 + 850) * MIB
    assert asking.asked == [32, 4, 8, 16], "half first, then bisection; the background counts as it was seen"


def test_whoever_waits_gets_the_first_proposal_that_fits_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    given, evidence = too_large()
    batch, *_ = proposals(given, evidence, None)
    found = forecasts_of_proposals(given, evidence, [batch, batch], None, predictor(), first=True)
    assert [one.answer for one in found] == [Answer.FITS, Answer.UNKNOWN]
    assert found[1].why_not == proposal_forecasts.NOT_YET


def test_what_does_not_fit_even_at_its_smallest_says_how_far_it_comes() -> None:
    given, _ = too_large(4)
    evidence = builders.predicted_evidence(1200, 6300)
    found = forecasts_of_proposals(given, evidence, proposals(given, evidence, None), None, predictor())
    (batch,) = (one for one in found if one.proposal.role == "foreground" and one.proposal.kind is Kind.BATCH)
    assert batch.answer is Answer.UNDECIDED
    assert batch.step is not None
    assert batch.step.override.options["--bs"] == 1


def test_a_program_that_fails_with_a_setting_is_not_predicted_with_it() -> None:
    given, evidence = too_large(32)
    batch, *_ = forecasts_of_proposals(
        given, evidence, proposals(given, evidence, None), None, predictor(failing=(16, 4))
    )

    assert batch.step is not None
    assert (batch.answer, batch.step.override.options["--bs"]) == (Answer.FITS, 2)


def test_of_what_was_measured_both_members_are_predicted_anew() -> None:
    given, predicted = too_large(16)
    reported = replace(predicted, device=builders.device_info(), foreground=predicted.foreground)
    asking = predictor()
    forecasts_of_proposals(given, reported, proposals(given, reported, None), None, asking)
    assert asking.asked[:2] == [8, 1], "the changed foreground and the background"


def test_without_time_or_an_allocator_that_tells_the_proposals_stand_without_figures() -> None:
    given, evidence = too_large()
    silent = builders.evidence(foreground=builders.foreground(held_bytes=9000 * MIB))
    for seen, asking, why_not in (
        (evidence, predictor(until_t=time.monotonic()), "not predicted yet"),
        (silent, predictor(), "examples_mnist, resnet20 told nothing of a PyTorch allocator"),
    ):
        batch, *_ = forecasts_of_proposals(given, seen, proposals(given, seen, None), None, asking)
        assert (batch.forecast, batch.why_not, batch.answer) == (None, why_not, Answer.UNKNOWN)


def test_the_gpu_is_that_of_the_evidence() -> None:
    measured = builders.evidence(device=builders.device_info(name="NVIDIA GeForce RTX 3080", total_bytes=10240 * MIB))
    assert "RTX 3080" in gpu_of(measured).name
    assert gpu_of(builders.evidence()).total_bytes == builders.GPU_BYTES


def finished(run: RunDirectory, given: Group, evidence: Evidence) -> GroupDirectory:
    directory = run.group("fore", given.number, parallel=True).create()
    write_record(directory, given, replace(evidence, group=given.id), [], run.name)
    return directory


def test_proposals_of_a_run_are_kept_and_completed_when_there_is_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run_20261124_053000")
    given, evidence = too_large()
    wanted = [(given, finished(run, given, evidence))]
    list(advise(run, wanted, None, budget_s=0.0))
    (batch,) = advice_files.read(run.proposals, advice_files.Proposals)["group01"].proposals
    assert batch.settings == "--bs 32 --accumulate 2"
    assert (batch.answer, batch.why_not) == (None, "not predicted yet")
    run.proposals.write_text(json.dumps({"schema": 1, "groups": {"group01": complete(given)}}))
    assert list(advise(run, wanted, None, budget_s=0.0)) == []
    other = replace(given, limits=given.limits.model_copy(update={"peak_bytes": 7000 * MIB}))
    assert [one.id for one, _ in advise(run, [(other, wanted[0][1])], None, budget_s=0.0)] == ["group01"]


def complete(given: Group) -> dict[str, object]:
    return {"content_hash": given.content_hash, "proposals": []}


def test_a_file_that_cannot_be_read_is_no_proposal(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert advice_files.read(run.proposals, advice_files.Proposals) == {}
    for text in ("{", "[]", '{"schema": 2, "groups": {"a": {}}}', '{"schema": 1, "groups": {"a": 1}}'):
        run.proposals.write_text(text)
        assert advice_files.read(run.proposals, advice_files.Proposals) == {}


TRAINING = (PROGRAMS / "linear.py").read_text()


@pytest.mark.slow
def test_the_report_predicts_with_real_programs_and_shows_it_when_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "train.py").write_text(TRAINING)
    members = {
        role: {"command": [sys.executable, "train.py", "--batch-size", size], "name": role}
        for role, size in (("foreground", "40"), ("background", "2"))
    }
    plan = {"limits": {"gpu": "2GB", "peak": "1650MB"}, "experiments": [{"id": "group01", **members}]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (given,) = load_plan(tmp_path / "plan.json").groups
    run = RunDirectory(tmp_path / "run_20261124_053000")
    device = builders.device_info(kind="virtual", basis="predicted", name="virtual 2 GB GPU", total_bytes=2048 * MIB)
    limits = replace(builders.evidence().limits, peak_bytes=1650 * MIB)
    finished(run, given, builders.predicted_evidence(1200, 40, device=device, limits=limits))
    run.record.write_text(json.dumps({"plan": {"name": "p", "path": str(tmp_path / "plan.json"), "catalog": None}}))
    assert main(["report", str(run.path), "--predict", "60"]) == 0
    assert "group01: 1 of 1 proposal predicted to fit" in capsys.readouterr().out
    first = (run.path / "report.html").read_text()
    assert "<code>--batch-size 20</code>" in first
    assert ": fits</b>" in first
    assert main(["report", str(run.path)]) == 0
    assert ": fits</b>" in (run.path / "report.html").read_text()
    (tmp_path / "plan.json").write_text(json.dumps(plan).replace('"2"', '"3"'))
    assert main(["report", str(run.path), "--predict"]) == 0
    assert "group01: its settings have changed since the run" in capsys.readouterr().out


def test_predictions_behind_the_groups_end_when_they_are_told_to(tmp_path: Path) -> None:
    """With the last group over, the program that is under way may end, and no other begins; Ctrl-C ends that too."""
    behind = Behind()
    sleeping = Program("sleeps", (sys.executable, "-c", "import time; time.sleep(300)"), tmp_path)
    predicting = Predictor(gpu_model("8GB"), behind=behind)
    threading.Timer(1.0, lambda: setattr(behind, "abandoned", True)).start()

    began_t = time.monotonic()
    with pytest.raises(Abandoned):
        predicting.simulated([sleeping])
    assert time.monotonic() - began_t < 60
    assert not predicting.known

    behind.over = True
    predicting.simulated([sleeping])
    assert not predicting.known, "nothing is begun any more"


def test_a_signal_ends_the_predictions_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to be ignored once, and to end the session without its page the second time."""
    run = RunDirectory(tmp_path / "run_20261124_053000")
    given, evidence = too_large()
    wanted = [(given, finished(run, given, evidence))]
    monkeypatch.setattr(predictor_module, "simulate", lambda *programs, **settings: os.kill(os.getpid(), signal.SIGINT))
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interruption = Interruption()
    interruption.install()
    with interruption.allowed():
        found = list(advise(run, wanted, None, budget_s=60.0))
    interruption.restore()
    assert interruption.received is None, "the session goes on"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert [one.why_not for one in found[0][1]] == [proposal_forecasts.NOT_YET]
    assert (
        advice_files.read(run.proposals, advice_files.Proposals)["group01"].proposals[0].settings
        == "--bs 32 --accumulate 2"
    )


@pytest.mark.slow
def test_a_session_leaves_proposals_for_what_needs_too_much_and_for_nothing_else(fake_nvml, tmp_path: Path) -> None:
    load = sessions.stand_in("--hold=1500", "--repeat")
    entries = [
        {"foreground": sessions.stand_in("--hold=6500", "--steps=20", "--probe"), "background": load},
        {"foreground": sessions.stand_in("--fail-at=5", "--steps=20", "--probe"), "background": load},
    ]
    done = sessions.run(sessions.plan(tmp_path / "plan.json", entries), tmp_path, "--device=nvidia")
    assert [one["outcome"] for one in done.verdicts.values()] == ["INFEASIBLE", "INFEASIBLE"], done.output
    found = advice_files.read(RunDirectory(done.run).proposals, advice_files.Proposals)
    assert list(found) == ["group01"]
    assert "a smaller batch with gradient accumulation" in (found["group01"].proposals[0].text or "")
    assert done.page.count("a smaller batch with gradient accumulation") == 2, "one per member of the first group"
    assert re.search(r"predicting what could be tried, for at most \d+ s", done.output)
