"""`--until-decided`: when a run may end before its foreground does, and what such an end cannot see."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
from fake_nvml import FakeNvml
from groups import RUN, group, observing, training

from colocate.harness.resume import decide
from colocate.plan.plan import Group
from colocate.process.exit_status import Exit
from colocate.report import summary_csv
from colocate.report.comparison import compare, lines
from colocate.report.github import of_comparison, of_run
from colocate.report.html.page import Report, banners
from colocate.results.layout import RunDirectory
from colocate.results.reader import parts, read_run
from colocate.results.record import read_record, write_record
from colocate.results.text import line_of
from colocate.results.verify import verify
from colocate.units import MIB
from colocate.verdict.aggregate import combine
from colocate.verdict.early_stopping import GRANULE_BYTES, cycles, phases, repeats
from colocate.verdict.evidence import Evidence, Member, ProcessRun, ProgressEvent, Sample
from colocate.verdict.rules import Outcome, Verdict, judge

# --- the rule ---------------------------------------------------------------------------------------------------------


def phased(pid: int, start_s: float, *reported: str, every_s: float = 2.0) -> tuple[ProgressEvent, ...]:
    """Phases one after the other, with a step in the middle of each."""
    progress_events = [ProgressEvent(start_s, pid, "ready")]
    for place, phase in enumerate(reported):
        begin = start_s + place * every_s
        progress_events += [
            ProgressEvent(begin, pid, "phase", phase),
            ProgressEvent(begin + every_s / 2, pid, "step", phase, 1),
        ]
    return tuple(progress_events)


TWICE = ("train", "evaluate", "train", "evaluate", "train")


def ended_early(**changes: Any) -> Evidence:
    """The sound group, whose foreground was ended by the harness after two whole cycles and no finished epoch."""
    stopped = (ProcessRun("training.log", 8.0, Exit(None, "SIGTERM", 21.0, stopped=True)),)
    ours = builders.foreground(process_runs=stopped, epochs=(), progress_events=phased(200, 10.0, *TWICE))
    theirs = builders.background(
        progress_events=phased(100, 3.0, *TWICE, "evaluate", "train", "evaluate", "train", "evaluate")
    )
    return builders.evidence(**{"foreground": ours, "background": theirs, "decided_early": "memory repeats", **changes})


def test_repeating_phases_end_a_run_and_the_verdict_says_so() -> None:
    verdict = judge(ended_early())
    assert verdict.feasible, verdict
    (warning,) = (one for one in verdict.warnings if one.code == "decided_early")
    assert warning.text == "ended before the foreground's own end: memory repeats"


def test_without_the_record_saying_so_the_same_end_is_no_verdict() -> None:
    """A record of before, and a foreground that somebody else ended, are judged as ever."""
    verdict = judge(ended_early(decided_early=None))
    assert (verdict.outcome, verdict.codes) == (Outcome.INCONCLUSIVE, ("foreground_not_ended",))


def with_foreground(evidence: Evidence, *reported: str) -> Evidence:
    return replace(evidence, foreground=replace(evidence.foreground, progress_events=phased(200, 10.0, *reported)))


def with_background(evidence: Evidence, progress_events: tuple[ProgressEvent, ...]) -> Evidence:
    assert evidence.background is not None
    return replace(evidence, background=replace(evidence.background, progress_events=progress_events))


def higher_at(evidence: Evidence, elapsed_s: float, more_bytes: int) -> Evidence:
    samples = [
        Sample(s, used + more_bytes if s >= elapsed_s and used > 3000 * MIB else used)
        for s, used in evidence.trace.samples
    ]
    return replace(evidence, trace=replace(evidence.trace, samples=tuple(samples)))


@pytest.mark.parametrize(
    "changed",
    [
        lambda one: with_foreground(one, "train", "evaluate", "train", "evaluate"),
        lambda one: with_foreground(one, "train"),
        lambda one: with_foreground(one, "train", "evaluate", "train", "evaluate", "save", "train"),
        lambda one: with_background(one, builders.steps(100, 3.0, 22.0)),
        lambda one: with_background(one, phased(100, 3.0, "train", every_s=19.0)),
        lambda one: higher_at(one, 15.0, GRANULE_BYTES + 1),
    ],
    ids=["one cycle", "no evaluation", "a new phase", "a background without phases", "of one phase", "rising memory"],
)
def test_what_does_not_repeat_is_not_decided(changed: Callable[[Evidence], Evidence]) -> None:
    evidence = changed(ended_early())
    assert not repeats(evidence)
    assert "foreground_not_ended" in judge(evidence).codes, "whatever the record claims"


def test_a_granule_more_is_no_growth() -> None:
    assert repeats(higher_at(ended_early(), 15.0, GRANULE_BYTES))


def test_a_background_on_the_processor_needs_no_phases() -> None:
    evidence = with_background(ended_early(), ())
    assert evidence.background is not None
    assert repeats(replace(evidence, background=replace(evidence.background, uses_gpu=False)))


def test_cycles_are_those_of_the_last_process() -> None:
    member: Member = builders.background(
        progress_events=(*phased(1, 0.0, *TWICE), *phased(2, 20.0, "train", "save", "train"))
    )
    assert cycles(member) == [(20.0, 24.0)]
    assert phases(member, (20.0, 24.0)) == {"train", "save"}


def test_an_out_of_memory_weighs_more_than_memory_that_repeats() -> None:
    evidence = ended_early()
    assert evidence.background is not None
    failing = replace(evidence.background, out_of_memory=(builders.out_of_memory(),))
    assert judge(replace(evidence, background=failing)).outcome is Outcome.INFEASIBLE


def test_the_page_names_what_was_decided_early(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run_1")
    pair = group(training("epochs"), training("load"))
    write_record(run.group("epochs", 1, parallel=True).create(), pair, ended_early(group="group01"), [], run.name)

    page = str(banners(Report.of([read_run(run.path)], tmp_path)))

    assert "DECIDED EARLY:" in page
    assert "1 group (group01)" in page
    (row,) = read_run(run.path).rows
    assert line_of(row.record).endswith(", decided early"), "the terminal says it beside FEASIBLE"


def test_what_was_decided_early_is_named_wherever_it_is_shown(tmp_path: Path) -> None:
    pair = group(training("epochs"), training("load"))
    runs = [RunDirectory(tmp_path / name) for name in ("run_1", "run_2")]
    for run, seen in zip(runs, (builders.evidence(group="group01"), ended_early(group="group01")), strict=True):
        write_record(run.group("epochs", 1, parallel=True).create(), pair, seen, [], run.name)
    stored = [read_run(run.path) for run in runs]

    assert [row["decided_early"] for run in runs for row in summary_csv.rows(run)] == [False, True]
    changes = compare(stored[0].rows, stored[1].rows, ("run_1", "run_2"))
    assert "only the later run decided it early" in list(lines(changes))[1]
    assert "FEASIBLE (measured), decided early" in of_comparison(changes, None)
    assert "FEASIBLE (measured), decided early" in of_run([("", part) for part in parts(stored[1:])])
    (verified,) = verify(runs[1].path)
    assert str(verified).endswith("agrees, FEASIBLE (measured) (decided early)")


def test_one_early_run_of_several_is_named_too() -> None:
    early, whole = judge(ended_early()), judge(builders.evidence(trace=builders.trace(*[3300] * 25)))

    assert combine([early, whole]).peak_bytes == whole.peak_bytes
    assert "decided_early" in {one.code for one in combine([early, whole]).warnings}
    assert "decided_early" not in {one.code for one in combine([whole, whole]).warnings}


# --- real processes ---------------------------------------------------------------------------------------------------

EPOCHS = 10
SHORT = ("--epochs", str(EPOCHS), "--steps", "4", "--evaluate-steps", "3", "--step-s", "0.04")
LOAD = training("load", "--hold", "1500", "--repeat", "--steps", "4")


def run(pair: Group, fake: FakeNvml, folder: Path, *, early: bool) -> tuple[Verdict, Evidence]:
    with observing(pair, fake.uuid(), folder / str(early), until_decided=early) as observation:
        observation.preflight()
        observation.start_background()
        observation.run_foreground()
        verdict = observation.conclude()
    evidence = read_record(observation.directory).evidence
    assert judge(evidence) == verdict
    return verdict, evidence


def finished(evidence: Evidence) -> int:
    return len(evidence.foreground.epochs)


CASES = {
    "a higher evaluation": (("--hold", "700", "--peak", "900"), ("--hold", "1500"), "FEASIBLE"),
    "a background that runs out": (("--hold", "700"), ("--oom-at", "9", "--oom-swallowed"), "INFEASIBLE"),
    "a higher epoch before": (("--peak", "2000", "--peak-epoch", "2"), ("--hold", "1500"), "INFEASIBLE"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_an_early_end_says_what_the_whole_run_says(case: str, fake_nvml: FakeNvml, tmp_path: Path) -> None:
    ours, theirs, expected = CASES[case]
    pair = group(
        training("epochs", *SHORT, *ours), training("load", "--repeat", "--steps", "4", *theirs), peak="2500MB"
    )

    early, seen = run(pair, fake_nvml, tmp_path, early=True)
    whole, all_of_it = run(pair, fake_nvml, tmp_path, early=False)

    assert str(early.outcome) == str(whole.outcome) == expected, (early, whole)
    assert finished(seen) < EPOCHS == finished(all_of_it)
    assert "decided_early" in {warning.code for warning in early.warnings}
    assert "decided_early" not in {warning.code for warning in whole.warnings}
    if early.feasible:
        assert seen.decided_early is not None
        assert f"{finished(seen)} of 1 epochs" in seen.decided_early
        assert early.peak_bytes == whole.peak_bytes


@pytest.mark.slow
def test_a_higher_epoch_after_the_end_is_what_it_cannot_see(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    """The risk of the option, as docs/known-limitations.md names it; a whole run that is asked for later is run."""
    late = ("--hold", "700", "--peak", "2000", "--peak-epoch", str(EPOCHS))
    pair = group(training("epochs", *SHORT, *late), LOAD, peak="2500MB")

    early, _ = run(pair, fake_nvml, tmp_path, early=True)
    whole, _ = run(pair, fake_nvml, tmp_path, early=False)

    assert early.feasible, early
    assert whole.outcome is Outcome.INFEASIBLE, whole
    directory = RunDirectory(tmp_path / "True" / RUN)
    assert decide(directory, [pair], ())[0].kept is not None
    (decision,) = decide(directory, [pair], (), early=False)
    assert (decision.kept, decision.why) == (None, "it was decided early, and now a whole run is asked for")


@pytest.mark.slow
def test_memory_that_grows_is_waited_for(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    """A leak of 40 MiB an epoch never repeats: the run goes on until it is over the limit."""
    pair = group(training("epochs", *SHORT, "--hold", "700", "--grow", "40"), LOAD, peak="2500MB")

    verdict, evidence = run(pair, fake_nvml, tmp_path, early=True)

    assert verdict.outcome is Outcome.INFEASIBLE, verdict
    assert finished(evidence) >= 6
