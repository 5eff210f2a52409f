"""Real pytest sessions over fabricated verdicts: what the user of a run sees and gets."""

import argparse
import html
import json
import re

import pytest
from stand_in_project import Project

from colocate.cli import arguments, run_options

pytestmark = pytest.mark.slow

WAYS = {
    "group02": "infeasible",
    "group03": "inconclusive",
    "group04": "skip",
    "group05": "bug",
    "group06": "nothing",
    "group07": "broken GPU",
}
SECRET = "hunter2-value-of-the-environment"


@pytest.fixture(scope="module", params=[(), ("-n2",)], ids=["serial", "two workers"])
def mixed(request, tmp_path_factory):
    """One run in which the groups end in every way."""
    project = Project(tmp_path_factory.mktemp("mixed"), WAYS, 7)
    return project.run("feasibility", *request.param, GITLAB_USER_EMAIL=SECRET, HF_TOKEN=SECRET)


def test_terminal_junit_and_page_agree_on_every_group(mixed):
    assert mixed.code == 1
    assert "1 failed, 1 passed, 1 skipped, 4 errors" in mixed.output
    assert mixed.junit_counts == {"tests": 7, "errors": 4, "failures": 1, "skipped": 1}
    expected = ["Passed", "Failed", "Error", "Skipped", "Error", "Error", "Error"]
    assert mixed.rows == [(f"group0{place}", word) for place, word in enumerate(expected, start=1)]
    words = {"Passed": "passed", "Failed": "failure", "Error": "error", "Skipped": "skipped"}
    assert mixed.junit == {name: words[result] for name, result in mixed.rows}


def test_every_finished_group_has_a_line_with_verdict_basis_peak_and_headroom(mixed):
    assert "group01 FEASIBLE (measured) peak 5000 MiB, headroom 2500 MiB" in mixed.output
    assert "group02 INFEASIBLE (measured) peak 7812 MiB, headroom -312 MiB" in mixed.output
    assert "      peak 7812 MiB, limit 7500 MiB [peak_over_limit]" in mixed.output
    assert "group03 INCONCLUSIVE (measured)" in mixed.output
    assert "group04 NOT RUN\n      workloads/x.py is not there" in mixed.output
    lines = [line for line in mixed.output.splitlines() if "] group0" in line]
    assert len(lines) == 7
    assert max(map(len, lines)) <= 80


def test_a_verdict_has_no_traceback_a_bug_of_the_harness_has_one_and_no_verdict_is_an_error(mixed):
    assert "ZeroDivisionError: a bug of the harness" in mixed.output
    assert ">           raise ZeroDivisionError" in mixed.output
    for raised in ("Infeasible", "InconclusiveError", "DeviceError"):
        assert f"raise {raised}" not in mixed.output
    assert "expected the verdict FEASIBLE behind it, found none" in mixed.output


def test_the_summary_gives_the_reasons_and_the_verdict_of_the_plan(mixed):
    assert "FAILED feasibility/test_groups.py::test_group[group02] - peak_over_limit" in mixed.output
    assert mixed.output.count("INFEASIBLE") == 1, "the verdict is told once, with its reason; then codes do"
    assert "ERROR at verdict of test_group[group03]" in mixed.output
    assert "1 of 7 groups feasible, 1 inconclusive; 6 needed (95 % of 7, rounded down): the" in mixed.output
    assert "plan is undecided" in mixed.output
    assert "basis: measured" in mixed.output


def test_the_header_names_the_gpu_and_its_basis_first(mixed):
    lines = mixed.output.splitlines()
    assert lines[2].startswith("GPU: predicting on a virtual GPU")
    assert lines[3] == "plan: settings/parallel_feasibility_test.json: 7 groups, 6 must fit"
    assert lines[4].startswith("limit: 7500 MiB of 8192 MiB")


def test_junit_carries_the_numbers_with_their_units(mixed):
    text = (mixed.folder / "junit.xml").read_text()
    assert '<property name="peak_mib" value="7812.0"' in text
    assert '<property name="basis" value="measured"' in text
    assert '<property name="codes" value="peak_over_limit"' in text


def test_the_run_is_recorded_before_its_groups_and_no_value_of_the_environment_is_anywhere(mixed):
    """pytest-metadata redacts in the controller only and takes the workers' unredacted values over that."""
    (record,) = mixed.folder.glob("results/*/run.json")
    document = json.loads(record.read_text())
    assert document["plan"]["groups"][0] == "group01"
    assert document["plan"]["needed"] == 6
    for text in (record.read_text(), mixed.page, mixed.output):
        assert SECRET not in text
    assert "GITLAB_USER_EMAIL" not in mixed.page


def test_the_page_is_one_file_with_its_own_title_that_fits_a_phone_and_markup_in_names_stays_text(mixed):
    assert '<title id="head-title">stand_in: can they share one GPU?</title>' in mixed.page
    assert '<meta name="viewport"' in mixed.page
    assert '<link href="' not in mixed.page
    assert (mixed.folder / "reports/latest").is_symlink()
    blob = html.unescape(mixed.page.split('data-jsonblob="')[1].split('"')[0])
    shown = json.dumps(json.loads(blob)["tests"])
    assert "<b>x</b>" not in shown + mixed.page
    assert "the GPU stopped answering &lt;b&gt;x&lt;/b&gt;" in mixed.page


# Selection.


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("twelve"), {}, 12)


def collected(run):
    return [line.split("[")[1].rstrip("]") for line in run.output.splitlines() if "::test_group[" in line]


def test_selections_mean_what_they_say(twelve):
    run = twelve.run("-k", "group_2 or group_3 or mnist_3", "-m", "not high", "--collect-only", "-q")
    assert collected(run) == ["group02", "group04"]
    assert run.code == 0
    assert not (twelve.folder / "results").exists(), "nothing was run"
    assert not (twelve.folder / "reports").exists()
    run = twelve.run("feasibility", "-k", "nonsense")
    assert run.code == 5
    assert list(twelve.folder.glob("re*ts/*")) == []


def test_with_the_gate_of_the_plan_exit_code_junit_and_last_line_say_the_same(tmp_path):
    """A selection of which all passed used to exit with 1, and JUnit failed groups that were tolerated."""
    project = Project(tmp_path, {"group02": "infeasible"}, 21)
    run = project.run("feasibility", "--gate=plan", "--predict=0")
    assert run.code == 0
    assert run.junit_counts == {"tests": 21, "errors": 0, "failures": 0, "skipped": 1}
    assert '<property name="colocate_plan" value="holds" />' in (tmp_path / "junit.xml").read_text()
    assert re.fullmatch("exit 0: the plan's rule holds .* tolerated: group02", run.output.splitlines()[-1])

    for words, code, last in (
        (("--gate=plan", "-k", "group1 or group3"), 0, "exit 0: the plan's rule holds for the selected groups, 2 of 2"),
        (("--gate=plan", "-k", "group2"), 1, "exit 1: the plan's rule does not hold for the selected groups, 0 of 1"),
        (("-k", "group1 or group2"), 1, "exit 1: 1 of 2 feasible, 1 needed by the plan; not: group02"),
    ):
        run = project.run("feasibility", "--predict=0", *words)
        assert (run.code, run.output.splitlines()[-1][: len(last)]) == (code, last)
    assert "-k 'group1 or group2' read as 'group01 or group02'" in run.output
    assert dict(run.rows) == {"group01": "Passed", "group02": "Failed"}
    assert "INCOMPLETE: 19 groups have no verdict (not selected: group03 to group21)" in run.output


# Plans.


def test_all_mistakes_of_a_plan_are_told_once_also_with_workers(tmp_path):
    project = Project(tmp_path, {}, 3, tier="no-such", expected_memory="much")
    run = project.run("feasibility", "-n2")
    assert run.code == 4
    assert run.output.count("ERROR: settings/parallel_feasibility_test.json: $.experiments[") == 6
    assert "Traceback" not in run.output


def test_other_tests_need_no_plan_no_gpu_and_write_nothing(tmp_path):
    project = Project(tmp_path, {}, 1)
    (tmp_path / "settings/parallel_feasibility_test.json").write_text("{ broken")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_something.py").write_text("def test_something(): pass\n")
    run = project.run("tests", "--device=nvidia")
    assert run.code == 0
    assert "GPU:" not in run.output
    assert not (tmp_path / "reports").exists()
    assert not (tmp_path / "results").exists()


# What goes wrong around a run.


def test_without_xdist_and_pytest_html_the_groups_still_run(tmp_path):
    run = Project(tmp_path, {}, 1).run("feasibility", *["-p", "no:xdist", "-p", "no:html", "-p", "no:metadata"])
    assert run.code == 0
    assert "1 of 1 groups feasible" in run.output


def test_options_refuse_what_they_cannot_mean():
    assert run_options.gpu("8GB") == "8GB"
    for parse, text in [
        (run_options.gpu, "0"),
        (run_options.gpu, "much"),
        (arguments.whole, "0"),
        (arguments.seconds, "-1"),
        (run_options.where, "kubernetes"),
        (run_options.where, "slurm:"),
    ]:
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            parse(text)


def test_a_page_or_a_summary_that_cannot_be_made_costs_no_verdict(tmp_path):
    """An error while the page was made used to end the whole session with an internal error."""
    project = Project(tmp_path, {"group01": "block the summary"}, 1)
    (tmp_path / "broken_page.py").write_text(
        "from colocate.report import page\n\ndef body(report):\n    raise KeyError('peak')\n\npage.body = body\n"
    )

    run = project.run("feasibility", "-p", "broken_page")

    assert run.code == 0
    assert "could not write summary.csv: " in run.output
    assert "could not write the report: KeyError: 'peak'" in run.output
    assert dict(run.rows) == {"group01": "Passed"}
    assert "1 of 1 groups feasible" in run.output
