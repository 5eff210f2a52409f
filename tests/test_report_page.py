import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from builders import (
    background,
    device_info,
    evidence,
    foreground,
    out_of_memory,
    predicted_evidence,
    simulated,
    too_large,
    trace,
)
from markupsafe import escape
from records import begin, body, finish, planned, propose, run_in

from colocate.process.exit_status import Exit
from colocate.report.html import details, page, table
from colocate.report.html.templating import macro
from colocate.results import journal
from colocate.results.group_result import GroupResult
from colocate.results.reader import read_run
from colocate.units import MIB
from colocate.verdict.evidence import ProcessRun, ProgressEvent

MARKUP = '<script>alert("x")</script>'


def record(**changes):
    known = {
        "group": "group01",
        "number": 1,
        "tier": "low",
        "foreground": "examples_mnist",
        "background": "resnet20",
        "expected_bytes": 3500 * MIB,
        "peak_bytes": 5000 * MIB,
        "peak_low_bytes": 5000 * MIB,
        "peak_high_bytes": 5000 * MIB,
        "limit_bytes": 7500 * MIB,
        "headroom_bytes": 2500 * MIB,
        "basis": "measured",
        "outcome": "FEASIBLE",
        "codes": [],
        "reasons": [],
        "warnings": [],
        "device_name": "Test 8 GB",
    }
    return {**known, **changes}


def cells(**changes):
    row = replace(GroupResult.from_json(record(**changes)), run="run_1")
    known = {"numbers": table.NUMBERS, "found_by": table.found_by, "sort_value": table.sort_value}
    markup = str(macro("groups.html", "group", **known)(row, table.COLUMNS))
    found = re.findall(r"<t[dh] [^>]*class.*?</t[dh]>", markup, re.DOTALL)
    return dict(zip(table.COLUMNS, found, strict=True))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def tags(text):
    parser = Tags()
    parser.feed(text)
    return parser.found


@pytest.fixture
def run(tmp_path):
    return run_in(tmp_path / "results")


# Cells.


def test_numbers_are_given_as_numbers_to_sort_by_and_the_unknown_as_nothing():
    assert 'data-v="-327155712"' in cells(headroom_bytes=-312 * MIB)["headroom"]
    assert 'data-v="10"' in cells(group="group10", number=10)["group"]
    assert "4800-5900" in cells(basis="predicted", peak_low_bytes=4800 * MIB, peak_high_bytes=5900 * MIB)["peak"]
    assert ">5000<" in cells()["peak"], "one that was measured is a number"
    assert re.search(r'✓</span> FEASIBLE</span>\s*<span class="basis">measured', cells()["verdict"])
    empty = cells(peak_bytes=None, headroom_bytes=None, expected_bytes=None, basis=None, outcome="NOT RUN")
    assert 'data-v=""' in empty["headroom"]
    for name in ("peak", "headroom", "expected"):
        assert re.sub(r"<.*?>", "", empty[name]).strip() == ""


# Foreign text.


def test_foreign_text_stays_text_everywhere(run):
    foreign = {name: MARKUP for name in ("tier", "foreground", "background", "basis", "device_name", "memory_class")}
    foreign |= {"reasons": [MARKUP], "warnings": [MARKUP], "codes": [MARKUP], "outcome": MARKUP}
    begin(run, groups=[MARKUP, "group01"], name=MARKUP)
    directory = finish(run)
    directory.foreground_log.write_text(MARKUP)
    journal.append(run.path, "group", record=record(**foreign, directory=str(directory.path)), text=MARKUP)
    journal.append(run.path, "group", record=record(**foreign, number=2))
    whole = page.document(page.Report.of([read_run(run.path)], run.path))
    scripts = [tag for tag, _ in tags(whole) if tag == "script"]
    assert len(scripts) == 1, "the page's own"
    assert str(escape(MARKUP)) in whole


# The whole.


def test_the_verdict_of_the_plan_is_one_sentence_on_top_and_each_tier_has_what_was_expected_of_it(run):
    begin(run, 3, tiers={"low": 1.0, "medium": 0.95})
    finish(run, 1)
    finish(run, 2, too_large())
    finish(run, 3, too_large(), tier="medium")
    found = body(run)
    assert "1 of 3 groups share an 8 GB GPU; 1 needed: the plan holds</h2>" in found
    assert "measured on Test 8 GB" in found
    assert "banner" not in found
    assert 'class="unsplit"' in found, "a measured peak of which nobody is known stays whole"
    assert folds(found) == [], "begun once"
    low, medium = re.findall(r"<tr><th scope=\"row\">(?:low|medium)</th>.*?</tr>", found, re.DOTALL)
    assert all(text in low for text in ("100 % (2 of 2)", ">1 (50%)<", ">below<"))
    assert "95 % (1 of 1)" in medium, "rounded down it would be none"
    assert ">below<" in medium
    assert all(more.get("scope") for tag, more in tags(found) if tag == "th")
    assert all(more.get("aria-label") and more.get("role") == "img" for tag, more in tags(found) if tag == "svg")


def test_a_page_of_a_run_that_is_incomplete_or_goes_on_says_so_on_top(run):
    begin(run, 3)
    journal.append(run.path, "started", groups=["group01", "group02"])
    finish(run, 1)
    assert "NOT ENDED:</b> run_20261124_053000" in body(run)
    assert "not done: group02" in body(run)
    journal.append(run.path, "group", record=record(group="group02", number=2, outcome="NOT RUN", basis=None))
    journal.append(run.path, "ended")
    found = body(run)
    assert "NOT ENDED" not in found
    assert "INCOMPLETE:</b> 2 groups have no verdict (NOT RUN: group02; not selected: group03)" in found
    assert found.index("INCOMPLETE") < found.index("headline")


def test_a_predicted_page_says_so_on_top_splits_its_peaks_and_says_who_needed_what_and_what_to_try(run):
    begin(run, 2)
    finish(run, 1, predicted_evidence(1000, 800))
    finish(run, 2, predicted_evidence(6000, 2000))
    found = body(run)
    assert "PREDICTED:" in found
    assert "1 of 2 groups are predicted to share" in found
    said = [more["aria-label"] for tag, more in tags(found) if more.get("class") == "bar-svg"]
    assert "foreground 1350 MiB; background 1150 MiB; baseline and other 230 MiB" in "".join(said)
    assert all("the plan expected 3500 MiB" in one for one in said)
    assert "is expected to need 8930 MiB, 1430 MiB above the limit: examples_mnist 6350 MiB, resnet20 2350 MiB" in found
    assert "this command says what could be tried" in found
    assert "<code>colocate report results/run_20261124_053000 --predict</code>" in found


def test_a_simulated_driver_is_stamped_loudly_and_a_restart_of_the_background_is_marked(run):
    begin(run)
    process_runs = (
        ProcessRun("a", 1.0, Exit(1, None, 9.0)),
        ProcessRun("b", 10.0, Exit(None, "SIGTERM", 23.0, stopped=True)),
    )
    never_ended = foreground(process_runs=(ProcessRun("training.log", 8.0),))
    device = device_info(driver_version="550.54 simulated")
    restarted = background(process_runs=process_runs)
    finish(run, 1, evidence(device=device, foreground=never_ended, background=restarted))
    found = body(run)
    assert "SIMULATED NVML:" in found
    assert "background started again at 10.0 s" in found
    assert re.search(r'<td class="num" data-label="background">2, 1</td>', found)
    assert "foreground ran" not in found, "one that never ended has no span"


def test_proposals_stand_with_what_is_predicted_of_them_for_the_group_as_it_was_run(run):
    begin(run)
    finish(run, 1, predicted_evidence(6000, 2000))
    peak = {"low_bytes": 5000 * MIB, "expected_bytes": 5500 * MIB, "high_bytes": 6000 * MIB}
    known = {"training": "mnist", "text": "mnist: x", "settings": f'"b": {MARKUP}', "why": "keeps the effective batch"}
    entries = (
        {**known, "peak": peak, "answer": "fits"},
        {**known, "peak": {**peak, "high_bytes": 9000 * MIB}, "answer": "undecided"},
        {**known, "peak": None, "answer": None, "why_not": "resnet20 told nothing of a PyTorch allocator"},
        {"text": "measure it", "settings": None},
    )
    propose(run, planned(), *entries)
    found = body(run)
    assert '<b class="forecast v-ok">5000-6000 MiB: fits</b>' in found
    assert '<b class="forecast v-warn">5000-9000 MiB: undecided</b>' in found
    assert "not predicted: resnet20 told nothing of a PyTorch allocator" in found
    assert "<li>measure it</li>" in found
    assert "The peaks of proposals are predicted on a virtual GPU, not measured." in found
    assert MARKUP not in found
    propose(run, planned(background=None), *entries)
    assert "5000-6000 MiB: fits" not in body(run), "of a group with other settings"
    not_yet = {**known, "peak": None, "why_not": "not predicted yet"}
    propose(run, planned(), not_yet, not_yet)
    found = body(run)
    assert found.count("not predicted") == 1
    assert "2 proposals not predicted yet; this command does it" in found


def folds(text):
    return [
        re.sub(r"<[^>]+>", "", found)
        for found in re.findall(r'class="attempt"><summary>(.*?)</summary>', text, re.DOTALL)
    ]


def test_every_attempt_at_a_group_is_shown_with_its_course_and_why_it_was_repeated(run):
    begin(run)
    foreign = evidence(faults=(("foreign_process", f"pid 7 {MARKUP}"),), duration_s=61.0)
    finish(run, 1, foreign, expected_bytes=None)
    finish(run, 1, evidence(duration_s=90.0), expected_bytes=None)
    found = body(run)
    assert folds(found) == [
        "attempt 1: INCONCLUSIVE, 1 min 01 s",
        "attempt 2: FEASIBLE, peak 3200 MiB, 1 min 30 s: this one decides",
    ]
    assert "Begun 2 times. The last attempt counts." in found
    assert "Begun again because of this: foreign_process." in found
    assert found.count('<figure class="memory"') == 2, "the deciding attempt's stands above"
    assert MARKUP not in found


def test_every_run_of_a_repeated_group_is_shown_and_the_worst_decides(run):
    begin(run)
    finish(run)
    finish(run, 1, evidence(faults=(("foreign_process", "somebody"),), run=2))
    finish(run, 1, too_large(run=2))
    found = folds(body(run))
    assert [text.partition(", peak")[0] for text in found] == [
        "run 1: FEASIBLE",
        "run 2, attempt 1: INCONCLUSIVE",
        "run 2, attempt 2: INFEASIBLE",
    ]
    assert found[2].endswith("this one decides")
    assert "2 runs, begun 3 times. The worst of the runs decides." in body(run)


def test_an_inconclusive_group_has_a_box_of_its_own_and_neither_class_nor_peak(run):
    """It used to be "not recommended", and its peak, which nothing carried, was the highest of the plan."""
    begin(run, 2)
    finish(run, 1)
    finish(run, 2, evidence(faults=(("foreign_process", "somebody used the GPU"),)))
    found = body(run)
    box = re.search(r'<section class="inconclusive">.*?</section>', found, re.DOTALL)[0]
    assert "No answer yet: fix this and run again" in box
    assert "somebody used the GPU [foreign_process]" in box
    assert "<code>colocate run -k group02</code>" in box
    assert found.count('<div class="bar-row"') == 1
    assert "highest peak, group01" in found
    row = re.search(r'<tbody[^>]*data-outcome="INCONCLUSIVE".*?</tr>', found, re.DOTALL)[0]
    for name in ("peak", "headroom", "memory_class"):
        assert re.search(rf'<td class="col-{name}[^"]*" data-v="">\s*</td>', row)


def test_every_group_is_drawn_against_its_own_limit(run):
    """The plan's limit used to be drawn for all, in colour and in words."""
    begin(run, 2)
    finish(run, 1)
    small = evidence()
    finish(run, 2, replace(small, limits=replace(small.limits, peak_bytes=5000 * MIB)))
    found = body(run)
    assert "peak 3200 MiB of 7500 MiB" in found
    assert "peak 3200 MiB of 5000 MiB" in found
    assert len(set(re.findall(r'<line class="limit" x1="([\d.]+)" x2="[\d.]+" y1="0" y2="26"', found))) == 2
    assert "3200 of 5000" in found


def test_what_a_training_wanted_beyond_a_full_gpu_is_its_own_part_of_the_peak(run):
    """It used to stand under baseline and other, for what was held before the GPU was full counted as all."""
    begin(run)
    seen = predicted_evidence(6000, 2000)
    failed = (ProcessRun("training.log", 8.0, Exit(1, None, 21.0)),)
    wanted = replace(
        seen.foreground, wanted=(simulated(7000),), out_of_memory=(out_of_memory(),), process_runs=failed, epochs=()
    )
    finish(run, 1, replace(seen, foreground=wanted))
    found = body(run)
    assert "foreground 7350 MiB; background 2350 MiB; baseline and other 230 MiB" in found
    assert "examples_mnist 7350 MiB, resnet20 2350 MiB, baseline 230 MiB" in found


def test_pairs_are_recommended_by_their_class(run):
    begin(run, 3)
    for number, reserved in ((1, 800), (2, 1900), (3, 4500)):
        finish(run, number, predicted_evidence(reserved, 800))
    lists = re.findall(r'<div class="next (v-\w+)">(.*?)</div>', body(run), re.DOTALL)
    groups = [re.findall(r">(group\d\d)</a>", text) for _, text in lists]
    assert groups == [["group01"], ["group02"], ["group03"], []], "what fits is never among what does not"


# Details.


def test_details_give_reason_numbers_picture_files_and_command(run):
    begin(run)
    seen = evidence(foreground=foreground(out_of_memory=(out_of_memory(),), allocators=(simulated(700),)))
    directory = finish(run, 1, seen)
    directory.foreground_log.write_text("last words\n")
    found = body(run)
    assert re.search(r'<div class="why v-bad">\s*<p>examples_mnist ran out of memory', found)
    assert '<svg class="timeline plot"' in found
    assert "foreground ran from 8.0 s to 21.0 s" in found
    assert "foreground: train from 10.0 s to 20.0 s" in found
    assert 'href="mnist_parallel_001/trace.csv"' in found
    assert "last words" in found
    assert "<code>colocate run -k group01</code>" in found


def test_the_command_keeps_the_options_that_chose_the_plan(run):
    begin(run)
    arguments = ["feasibility", "--plan", "a b.json", "-n2", "--gpu=8GB"]
    run.record.write_text(json.dumps({**json.loads(run.record.read_text()), "arguments": arguments}))
    finish(run, 1)
    stored = read_run(run.path)
    assert details.again(["group01"], stored) == "colocate run 'a b.json' --gpu=8GB -k group01"
    measured = details.again(["group01", "group02"], stored, measure=True)
    assert measured == "colocate run 'a b.json' --gpu=8GB --device=nvidia -k 'group01 or group02'"


def test_logs_are_shown_from_their_end_and_capped(run):
    begin(run)
    directory = finish(run, 1)
    directory.foreground_log.write_text("".join(f"line {number} {'x' * 500}\n" for number in range(5000)))
    directory.background_log(1).write_text("first life\n")
    directory.background_log(2).write_text("second \x1b[31mlife\x1b[0m <b>bold</b>\r\n")
    (row,) = read_run(run.path).results
    found = str(details.details(row, None, run.path))
    assert "line 4999" in found
    assert "line 4900" not in found
    assert "first life" not in found
    assert "second life &lt;b&gt;bold&lt;/b&gt;" in found
    assert len(found) < 40_000


def test_a_damaged_trace_is_told_and_not_drawn(run):
    begin(run)
    finish(run, 1).trace.write_text("elapsed_s,used_bytes\nnonsense\n1.0,5\n")
    found = body(run)
    assert '<svg class="timeline' not in found
    assert "expected elapsed_s,used_bytes" in found


@pytest.mark.slow
def test_twelve_groups_of_an_hour_each_stay_below_a_megabyte(run, tmp_path):
    """Traces of 12,000 samples, a thousand marks and long logs: what a plan of long groups leaves."""
    begin(run, 12, needed=11)
    long = evidence(trace=trace(*(3000 + number % 97 for number in range(12_000)), interval_s=0.3), baseline_bytes=0)
    progress_events = tuple(ProgressEvent(3.0 * number, 100, "step", "train", number) for number in range(1200))
    long = replace(long, background=replace(long.background, progress_events=progress_events))
    first = finish(run, 1, long)
    first.foreground_log.write_text("epoch 1 loss 0.123456 accuracy 0.9\n" * 20_000)
    for number in range(2, 13):
        copied = run.group("mnist", number, parallel=True)
        shutil.copytree(first.path, copied.path)
        copied.experiment.write_text(copied.experiment.read_text().replace('"group01"', f'"group{number:02}"'))
    page_text = page.document(page.Report.of([read_run(run.path)], run.path))
    assert page_text.count('class="timeline plot"') == 12
    assert len(page_text.encode()) < 1_000_000
