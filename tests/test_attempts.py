"""Several attempts at a group and what they come to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import background, evidence, foreground, out_of_memory, predicted_evidence, simulated, steps, trace
from groups import group, training
from hypothesis import given
from hypothesis import strategies as st
from records import finish

from colocate.files import write_json
from colocate.harness.attempt import free_directory, retry_cause
from colocate.report import summary_csv
from colocate.results.layout import RunDirectory
from colocate.results.reader import group_result_of, group_results, read_run
from colocate.units import MIB
from colocate.verdict.evidence import Evidence
from colocate.verdict.rules import Outcome, judge
from colocate.verdict.verdict import combine

GROUP = group(training("mnist"), training("resnet20"))
INTERRUPTED = evidence(faults=(("foreign_process", "somebody was there"),))


def peaked(mib: float) -> Evidence:
    return evidence(trace=trace(*[0] * 9, *[mib] * 16), baseline_bytes=0)


def predicted_paused(**changes: Any) -> Evidence:
    """On a virtual GPU: the background made its steps before the foreground trained."""
    paused = background(allocators=(simulated(100, 100),), progress_events=steps(100, 3.0, 9.0))
    return replace(predicted_evidence(1000, 100), background=paused, **changes)


def write(run: RunDirectory, seen: Evidence, repeat: int = 1) -> Path:
    return finish(run, 1, replace(seen, run=repeat)).path


def test_attempts_stand_beside_each_other_and_the_last_one_counts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    names = [write(run, seen).name for seen in (INTERRUPTED, INTERRUPTED, evidence())]
    found = group_results(run)["group01"]

    assert names == ["mnist_parallel_001", "mnist_parallel_001_attempt2", "mnist_parallel_001_attempt3"]
    assert found.verdict.feasible
    assert found.deciding.directory.path.name == names[-1]
    assert "repeated after mnist_parallel_001 (foreign_process)" in str(found.verdict.warnings[-1])


def test_a_clock_that_was_set_back_does_not_make_an_earlier_attempt_the_last(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write(run, replace(INTERRUPTED, started_at="2026-11-24T06:00:00+00:00"))
    write(run, replace(peaked(3200), started_at="2026-11-24T05:00:00+00:00"))

    assert group_results(run)["group01"].verdict.feasible


def test_a_group_that_was_run_less_often_than_the_plan_asks_for_is_not_decided(tmp_path: Path) -> None:
    """As of a run that was killed after the first of two."""
    run = RunDirectory(tmp_path)
    write(run, peaked(3200))
    twice = replace(GROUP, runs=2)
    write_json(run.record, {"plan": {"asked": {"group01": {"content_hash": twice.content_hash, "runs": 2}}}})

    for found in (group_results(run)["group01"], group_result_of(run, twice)):
        assert found is not None
        assert found.verdict.codes == ("runs_missing",)
    write(run, peaked(7600), repeat=2)
    assert group_results(run)["group01"].verdict.outcome is Outcome.INFEASIBLE


def test_a_record_of_other_settings_than_the_plan_has_by_now_says_nothing_of_them(tmp_path: Path) -> None:
    """As after an edit and --resume with a selection that leaves the group out."""
    run = RunDirectory(tmp_path)
    write(run, peaked(3200))
    write_json(run.record, {"plan": {"name": "test", "asked": {"group01": {"content_hash": "edited", "runs": 1}}}})

    assert group_results(run) == {}
    assert group_result_of(run, group(training("larger"), training("resnet20"))) is None
    assert group_results(run, every=True)["group01"].verdict.feasible
    assert read_run(run.path).results == ()
    assert summary_csv.rows(run) == []


def test_a_folder_that_is_half_written_is_not_used_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    free_directory(run, GROUP, 1).path.mkdir()

    assert free_directory(run, GROUP, 1).attempt == 2


def test_the_worst_run_decides_and_the_spread_is_shown(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write(run, peaked(3200))
    write(run, evidence(foreground=foreground(out_of_memory=(out_of_memory(),))), repeat=2)
    write(run, peaked(3500), repeat=3)
    found = group_results(run)["group01"]

    assert found.verdict.codes == ("foreground_out_of_memory",)
    assert found.verdict.peak_bytes == 3500 * MIB
    assert found.deciding.directory.path.name == "mnist_parallel_001_run2"
    assert "3 runs peaked at 3200 MiB, 3200 MiB, 3500 MiB: a spread of 300 MiB" in str(found.verdict.warnings[-1])


def test_a_headroom_smaller_than_the_spread_is_inconclusive() -> None:
    assert combine([judge(peaked(6800)), judge(peaked(7200))]).codes == ("spread",)
    assert combine([judge(peaked(6800)), judge(peaked(7100))]).feasible


@given(st.lists(st.integers(0, 8000), min_size=1, max_size=5))
def test_runs_together_are_never_better_than_the_worst(peaks: list[int]) -> None:
    verdicts = [judge(peaked(mib)) for mib in peaks]
    together = combine(verdicts)

    assert together.peak_bytes == max(peaks) * MIB
    assert not together.feasible or all(verdict.feasible for verdict in verdicts)
    assert together.feasible is (together.reasons == ())


@pytest.mark.parametrize(
    ("seen", "started", "cause"),
    [
        (INTERRUPTED, True, "foreign_process"),
        (INTERRUPTED, False, None),
        (evidence(faults=(("supervisor_lost", "killed"),)), True, "supervisor_lost"),
        (evidence(faults=(("interrupted", "SIGINT"),)), True, None),
        (evidence(foreground=foreground(out_of_memory=(out_of_memory(),))), True, None),
        (evidence(), True, None),
        (predicted_paused(), True, "too_little_overlap"),
        (predicted_paused(baseline_bytes=None), True, None),
        (evidence(background=background(progress_events=steps(100, 3.0, 9.0))), True, None),
    ],
)
def test_only_what_may_be_gone_next_time_is_repeated(seen: Evidence, started: bool, cause: str | None) -> None:
    assert retry_cause(judge(seen), started=started) == cause


def test_a_dry_run_that_failed_is_repeated_whole_if_its_passes_were_cut() -> None:
    """A program that counts on all its batches was INCONCLUSIVE in a group; alone, `predict` ran it whole."""
    unfinished = foreground(allocators=(simulated(600),), epochs=())
    verdict = judge(predicted_evidence(554, 600, foreground=unfinished))

    assert [retry_cause(verdict, started=True, cut=cut) for cut in (False, True)] == [None, "dry_run_failed"]


def test_a_damaged_record_is_left_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    path = write(run, evidence())
    (path / "verdict.json").write_text(json.dumps({"outcome": Outcome.FEASIBLE}))

    assert group_results(run) == {}
