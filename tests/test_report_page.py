import re
from html.parser import HTMLParser

import pytest
from builders import background, evidence, foreground, predicted_evidence
from groups import group, training
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.evidence import Exit, Life
from colocate.plugin.outcome import FIELDS
from colocate.record import write_record
from colocate.report import page
from colocate.report.tally import Tally
from colocate.run_directory import GroupDirectory
from colocate.units import MIB

MARKUP = '<script>alert("x")</script>'


def record(**changes):
    known = {
        **dict.fromkeys(FIELDS),
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
    }
    return {**known, **changes}


def cells(**changes):
    return dict(zip(page.COLUMNS, page.row_cells(record(**changes)), strict=True))


def inner(cell):
    """What pytest-html sorts by: the first thing between the tags of a cell, by its own expression."""
    return re.search(r"<td.*?>(.*?)</td>", cell)[1]


@settings(deadline=None)
@given(st.lists(st.none() | st.integers(-(2**36), 2**36), min_size=2))
def test_numbers_sort_as_numbers_and_the_unknown_comes_last(values):
    """pytest-html compares the cells as strings: '999' would be above '5000' and '-312' above '-400'."""
    by_text = sorted(values, key=lambda value: inner(cells(headroom_bytes=value)["headroom"]))
    known = [value for value in by_text if value is not None]
    assert known == sorted(known)
    assert by_text[: len(known)] == known


def test_group_ten_sorts_after_group_nine():
    nine, ten = (inner(cells(group=name, number=number)["group"]) for name, number in (("b", 9), ("a", 10)))
    assert nine < ten


def test_a_predicted_peak_is_an_interval_and_a_measured_one_a_number():
    predicted = cells(basis="predicted", peak_low_bytes=4800 * MIB, peak_high_bytes=5900 * MIB)
    assert "4800-5900" in predicted["peak"]
    assert "5000<" in cells()["peak"]


def test_what_is_unknown_is_an_empty_cell():
    empty = cells(peak_bytes=None, headroom_bytes=None, expected_bytes=None, basis=None, outcome="NOT RUN")
    shown = [re.sub(r"<i hidden>.*?</i>", "", inner(empty[name])) for name in ("peak", "headroom", "expected", "basis")]
    assert shown == ["", "", "", ""]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)


def tags(text):
    parser = Tags()
    parser.feed(text)
    return parser.found


def test_foreign_text_stays_text_everywhere(tmp_path):
    foreign = {name: MARKUP for name in ("group", "tier", "foreground", "background", "basis", "device_name")}
    foreign |= {"reasons": [MARKUP], "warnings": [MARKUP], "codes": [MARKUP], "outcome": MARKUP}
    tally = Tally({MARKUP: "ERROR", "x": MARKUP}, 1, 0.5)
    parts = [*page.row_cells(record(**foreign)), page.details(record(**foreign), tmp_path)]
    parts += [page.tiles(tally, [record(**foreign)], 7500 * MIB, 8192 * MIB), page.banners(tally, [])]
    assert "script" not in tags("".join(parts))
    assert "&lt;script&gt;" in "".join(parts)


# What is read from the run directory.


@pytest.fixture
def directory(tmp_path):
    found = GroupDirectory(tmp_path / "results/run_1/g").create()
    members = {"foreground": foreground(), "background": background()}
    write_record(found, group(training("a"), training("b")), evidence(**members), [], "run_1")
    return found


def details(directory, tmp_path, **changes):
    return page.details(record(directory=str(directory.path), **changes), tmp_path / "reports/run_1")


def test_details_give_reason_numbers_picture_files_and_command(directory, tmp_path):
    found = details(directory, tmp_path, outcome="INFEASIBLE", reasons=["peak 7812 MiB [peak_over_limit]"])
    assert '<div class="why v-bad"><p>peak 7812 MiB [peak_over_limit]</p>' in found
    assert "INFEASIBLE (measured)" in found
    assert '<svg class="timeline"' in found
    assert "foreground ran from 8.0 s to 21.0 s" in found
    assert 'href="../../results/run_1/g/trace.csv"' in found
    assert "<code>pytest feasibility -k group01</code>" in found


def test_logs_are_shown_from_their_end_and_capped(directory, tmp_path):
    directory.foreground_log.write_text("".join(f"line {number} {'x' * 500}\n" for number in range(5000)))
    directory.background_log(1).write_text("first life\n")
    directory.background_log(2).write_text("second \x1b[31mlife\x1b[0m <b>bold</b>\r\n")
    found = details(directory, tmp_path)
    assert "line 4999" in found
    assert "line 4900" not in found
    assert "first life" not in found
    assert "second life &lt;b&gt;bold&lt;/b&gt;" in found
    assert len(found) < 40_000


def test_a_damaged_trace_is_told_and_not_drawn(directory, tmp_path):
    directory.trace.write_text("elapsed_s,used_bytes\nnonsense\n1.0,5\n")
    found = details(directory, tmp_path)
    assert "<svg" not in found
    assert "expected elapsed_s,used_bytes" in found


def test_a_member_that_never_ended_has_no_span(tmp_path):
    found = GroupDirectory(tmp_path / "g").create()
    running = foreground(lives=(Life("training.log", 8.0),))
    write_record(found, group(training("a"), None), evidence(foreground=running, background=None), [], "r")
    assert "foreground ran" not in page.details(record(directory=str(found.path)), tmp_path)
    assert Exit(0, None, 1.0).ok


# The whole.


def test_a_predicted_page_says_so_on_top():
    predicted = predicted_evidence(1000, 800)
    tally = Tally({"group01": "FEASIBLE"}, 1, 1.0)
    assert predicted.device.basis == "predicted"
    assert "PREDICTED:" in page.banners(tally, [record(basis="predicted")])
    assert page.banners(tally, [record(basis="measured")]) == ""


def test_an_incomplete_page_says_so_on_top():
    banner = page.banners(Tally({"group01": "FEASIBLE", "group02": "NOT RUN"}, 1, 0.5), [])
    assert "<b>INCOMPLETE:</b> 1 group has no verdict (NOT RUN: group02)" in banner


def test_tiles_give_the_verdict_of_the_plan_its_rule_and_the_highest_peak():
    tally = Tally({"group01": "FEASIBLE", "group02": "INFEASIBLE"}, 1, 0.5)
    peaks = [
        record(),
        record(group="group02", peak_low_bytes=7812 * MIB, peak_high_bytes=7812 * MIB, peak_bytes=7812 * MIB),
    ]
    found = page.tiles(tally, peaks, 7500 * MIB, 8192 * MIB)
    assert "<b>the plan holds</b><span>1 of 2 groups needed (50 %, rounded down)</span>" in found
    assert "<b>7812 MiB</b><span>highest peak, group02</span>" in found
    assert "<b>measured</b><span>basis</span>" in found
