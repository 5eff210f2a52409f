"""Remedies: what is proposed for a group that does not fit is run until something holds, and told before and after."""

import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders
import pytest
from groups import group, training
from sessions import plan, run, stand_in

from colocate.advice.forecast import Answer
from colocate.advice.remedies import MOST_TRIALS, candidates, is_of_memory
from colocate.cli.main import main
from colocate.files import write_json
from colocate.plan.plan import Group
from colocate.report.html.advice import remedies
from colocate.report.html.templating import macro
from colocate.results.advice_files import Proposed
from colocate.results.layout import RunDirectory
from colocate.results.reader import parts, read_run
from colocate.results.record import write_record
from colocate.verdict.evidence import Evidence
from colocate.verdict.rules import judge

# --- what is tried ----------------------------------------------------------------------------------------------------


def too_large() -> tuple[Group, Evidence]:
    """A foreground of batch 64 that wants more than the GPU has, beside a background of batch 8."""
    given = group(training("fore", "--bs", "64"), training("back", "--bs", "8"))
    return given, builders.predicted_evidence(6000, 2000)


def proposed(kind: str, role: str, settings: str, answer: Answer | None) -> Proposed:
    return Proposed(kind=kind, role=role, settings=settings, answer=None if answer is None else str(answer))


def test_what_is_predicted_to_fit_comes_first_and_then_what_nobody_could_predict():
    """What is predicted not to fit is not tried, and only a GPU can decide what a prediction leaves open."""
    given, evidence = too_large()

    def tried(seen: Evidence, *known: tuple[str, str, Answer | None]) -> list[str]:
        entries = [proposed("smaller batch", role, settings, answer) for role, settings, answer in known]
        return [str(one.step.settings) for one in candidates(given, seen, None, entries)]

    found = tried(evidence, ("foreground", "--bs 16", None), ("background", "--bs 4", Answer.FITS))
    assert found == ["--bs 4", "--bs 32", "--bs 16", "--bs 8"], "from the mildest on"
    assert len(found) == MOST_TRIALS
    no = Answer.DOES_NOT_FIT
    assert tried(evidence, ("foreground", "--bs 1", no), ("background", "--bs 1", no)) == []
    open_ = (("foreground", "--bs 16", Answer.UNDECIDED), ("background", "--bs 4", no))
    assert tried(evidence, *open_) == []
    assert tried(replace(evidence, device=builders.device_info()), *open_) == ["--bs 16"]


def _is_of_memory(evidence: Evidence) -> bool:
    verdict = judge(evidence)
    return is_of_memory(verdict.outcome, verdict.codes)


def test_a_group_that_failed_for_another_reason_has_no_remedy():
    assert _is_of_memory(builders.predicted_evidence(9000, 500))
    assert not _is_of_memory(builders.evidence())
    killed = builders.foreground(epochs=(), process_runs=(replace(builders.foreground().process_runs[0], exit=None),))
    assert not _is_of_memory(builders.evidence(foreground=killed))


# --- a session --------------------------------------------------------------------------------------------------------

# 5 samples of 1000 MiB beside 2000 MiB do not fit below 6000 MiB; 2 do, and 1 would.
LARGE = stand_in("--hold", "500", "--per-sample", "1000", "--batch-size", "5", "--steps", "20", "--probe")
LOAD = stand_in("--hold", "2000", "--repeat")


def of_tried(entry: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["settings"], one["after"]["outcome"]) for one in entry["tried"]]


@pytest.mark.slow
def test_a_session_tries_remedies_and_leaves_the_verdict_as_it_was(fake_nvml, tmp_path):
    entries = [
        {"id": "large", "foreground": LARGE, "background": LOAD},
        {"id": "fails", "foreground": stand_in("--fail-at", "3"), "background": LOAD},
    ]
    path = plan(tmp_path / "plan.json", entries, peak="6000MB")

    session = run(path, tmp_path, "--device=nvidia", "--try-fixes", "--predict=0")

    assert session.code == 1
    assert (session.verdicts["large"]["outcome"], session.junit["large"]) == ("INFEASIBLE", "failure")
    document = json.loads((session.run / "remedies.json").read_text())["groups"]
    assert document.keys() == {"large"}, "a program that fails has no remedy here"
    entry = document["large"]
    assert of_tried(entry) == [("--batch-size 2", "FEASIBLE")]
    assert (entry["holds"], entry["before"]["outcome"]) == (0, "INFEASIBLE")
    (remedy,) = entry["tried"]
    assert remedy["after"]["peak_bytes"] < entry["before"]["limit_bytes"] <= entry["before"]["peak_bytes"]
    assert (remedy["after"]["basis"], remedy["answer"]) == ("measured", "not predicted")
    assert "remedy for large: FEASIBLE (measured) with stand_in: --batch-size 2" in session.output
    side = session.run / remedy["directory"]
    assert side.parent.name == f"{session.run.name}_remedies"
    assert main(["verify", str(side.parent)]) == 0

    # The settings to copy are those that were run.
    copied = json.loads(path.read_text())
    copied["experiments"][0] |= remedy["member"]
    path.with_name("copied.json").write_text(json.dumps(copied))
    again = run(path.with_name("copied.json"), tmp_path / "copied", "--device=nvidia", "-k", "large")
    assert again.verdicts["large"]["outcome"] == "FEASIBLE"

    # The page has both, and so has the one that is made from the records.
    for page in (session.page, rebuilt(session.run, tmp_path)):
        assert "<h2>Fixes that were tried</h2>" in page
        assert '"--batch-size"' in html.unescape(page)

    # Going on neither loses nor repeats it.
    before = sorted(side.parent.iterdir())
    resumed = run(
        path, tmp_path, "--device=nvidia", "--try-fixes", "--predict=0", f"--resume={session.run}", "-k", "large"
    )
    assert resumed.code == 1
    assert sorted(side.parent.iterdir()) == before
    assert json.loads((session.run / "remedies.json").read_text())["groups"] == document
    assert "[reused]" in " ".join(resumed.output.split())


def rebuilt(run: Path, folder: Path) -> str:
    assert main(["report", str(run), "--out", str(folder / "again.html")]) == 0
    return (folder / "again.html").read_text()


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_remedy_for_other_settings_and_a_damaged_file_are_not_shown(tmp_path):
    run = RunDirectory(tmp_path / "run_1")
    given, evidence = too_large()
    write_record(run.group("fore", 1, parallel=True).create(), given, evidence, [], run.name)
    figures = {"outcome": "INFEASIBLE", "basis": "predicted", "codes": []}
    tried = {"training": "fore", "settings": "--bs <16>", "after": {**figures, "outcome": "FEASIBLE"}, "member": {}}
    entry = {"content_hash": given.content_hash, "before": figures, "tried": [tried], "holds": 0}

    def shown(document: Any) -> str | None:
        write_json(run.remedies, document)
        (part,) = parts([read_run(run.path)])
        found = remedies(part)
        return str(macro("advice.html", "remedies")(found)) if found else None

    assert "fits with --bs &lt;16&gt;" in (shown({"schema": 1, "groups": {given.id: entry}}) or "")
    lost = shown({"schema": 1, "groups": {given.id: {**entry, "holds": None}}}) or ""
    assert "none of 1 holds" in lost
    assert shown({"schema": 1, "groups": {given.id: {**entry, "content_hash": "another"}}}) is None
    for damaged in ([], {"schema": 2}, {"schema": 1, "groups": []}, {"schema": 1, "groups": {given.id: 3}}):
        assert shown(damaged) is None
