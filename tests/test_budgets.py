"""Budgets of groups, and what a job of GitHub Actions is told of a run."""

import json
from pathlib import Path

import pytest
from builders import evidence, too_large
from records import STARTED_AT, begin, body, finish, run_in

from colocate.plan.plan import load_plan
from colocate.report import github
from colocate.report.html import page
from colocate.results.reader import parts, read_run
from colocate.units import MIB


def entry(**changes) -> dict[str, object]:
    member = {"command": ["true"]}
    return {"foreground": member, "background": member, "expected_memory": "3000MB", **changes}


def loaded(folder: Path, **document):
    path = folder / "plan.json"
    path.write_text(json.dumps(document))
    return load_plan(path)


def test_a_budget_is_what_is_expected_and_the_tolerance_of_the_entry_or_the_plan(tmp_path):
    entries = [entry(), entry(tolerance="100MB"), entry(tolerance=0), entry(expected_memory=None)]
    plan = loaded(tmp_path, tolerance="500MB", experiments=entries)
    assert [one.budget_bytes for one in plan.groups] == [3500 * MIB, 3100 * MIB, 3000 * MIB, None]
    without = loaded(tmp_path, experiments=[entry()])
    assert without.groups[0].budget_bytes is None
    assert without.groups[0].content_hash == plan.groups[0].content_hash, "it decides nothing"


@pytest.fixture
def run(tmp_path):
    """Three groups that peaked at 3200 MiB: over budget, within it, and without one; a fourth that does not fit."""
    found = run_in(tmp_path)
    begin(found, 4, needed=3)
    for number, tolerance in ((1, 100 * MIB), (2, 200 * MIB), (3, None)):
        finish(found, number, expected_bytes=3000 * MIB, tolerance_bytes=tolerance)
    finish(found, 4, too_large())
    return found


def test_a_group_over_its_budget_is_flagged_on_the_page_and_stays_feasible(run):
    found = body(run)
    assert "<b>OVER BUDGET:</b> 1 group over budget: group01 by 100 MiB. A budget changes no verdict." in found
    assert "<dd>3100 MiB, over by 100 MiB</dd>" in found
    assert "<dd>3200 MiB</dd>" in found, "the second is within its budget"
    assert found.count('data-outcome="FEASIBLE"') == 3


def test_a_run_read_back_knows_its_start_and_the_smaller_gpu_that_it_had(run):
    document = json.loads(run.record.read_text())
    document["plan"]["limits"] = {"gpu_bytes": 24576 * MIB, "peak_bytes": 24000 * MIB}
    run.record.write_text(json.dumps(document))
    found = read_run(run.path)
    (part,) = parts([found])
    assert (found.started_at, part.gpu_bytes) == (STARTED_AT, evidence().device.total_bytes)


def test_the_summary_of_a_job_has_the_groups_that_do_not_fit_first(run):
    report = page.Report.of([read_run(run.path)], run.path)
    lines = github.of_run((page.headline(part), part) for part in report.parts).splitlines()
    assert lines[0] == "## 3 of 4 groups share an 8 GB GPU; 3 needed: the plan holds"
    assert [line.split(" | ")[1] for line in lines[4:8]] == ["group04", "group01", "group02", "group03"]
    assert lines[5].endswith("| over budget by 100 MiB |")


def test_annotations_name_what_does_not_fit_and_what_is_over_its_budget(run):
    found = list(github.annotations_of_run(read_run(run.path).results))
    assert found[0] == "::warning title=group01::peak 3200 MiB is over its budget of 3100 MiB"
    assert found[1].startswith("::error title=group04::INFEASIBLE (measured): examples_mnist ran out of memory")
    assert len(found) == 2


def test_nothing_in_a_name_ends_an_annotation_or_a_cell():
    assert github.annotation("error", "a,b:c", "50 %\nnext") == "::error title=a%2Cb%3Ac::50 %25%0Anext"
    change = "\n".join(github._table(["a"], [["x|y <b> `z`\n_q_"]]))
    assert change.splitlines()[-1] == "| x\\|y &lt;b&gt; \\`z\\` \\_q\\_ |"
