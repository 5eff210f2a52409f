"""The page in a real browser. Skipped, with the reason, where there is none."""

import base64
import json
import re
from dataclasses import replace

import pytest
from browser import MISSING, browser
from builders import device_info, evidence, foreground, out_of_memory, predicted_evidence, simulated
from groups import group, training
from stand_in_project import Project
from waiting import wait_until

from colocate.report.comparison import compare
from colocate.report.html import details, large_table, page
from colocate.results import journal
from colocate.results.layout import RunDirectory
from colocate.results.reader import read_run
from colocate.results.record import write_record
from colocate.units import MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed (apt-get install chromium-driver)"),
]

MARKUP = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
ENTER, TAB, SPACE = "\ue007", "\ue004", "\ue00d"


def fill(run, num_groups):
    """A run of groups with peaks of 900 MiB, 1900 MiB and so on, of which the second does not fit."""
    run.path.mkdir(parents=True)
    names = [f"group{number:02}" for number in range(1, num_groups + 1)]
    plan = {"name": f"plan {MARKUP}", "groups": [*names, "group99"], "needed": 1, "success_rate": 0.5}
    plan["tiers"] = {"low": 1.0, "high": 0.8}
    run.record.write_text(json.dumps({"plan": plan, "started_at": "2026-11-24T05:30:00+00:00"}))
    for number, name in enumerate(names, start=1):
        directory = run.group("mnist", number, parallel=True).create()
        one = replace(group(training("mnist"), training("resnet20")), number=number, id=name, expected_bytes=3500 * MIB)
        one = replace(one, tier="low" if number % 2 else "high")
        seen = predicted_evidence(900 + 1000 * (number - 1) % 6000, 100, group=name)
        if number == 2:
            wrong = foreground(out_of_memory=(out_of_memory(),), allocators=(simulated(9000),))
            seen = replace(seen, foreground=wrong)
        if number == 3:
            seen = replace(seen, faults=(("sensor_lost", f"the GPU is gone {MARKUP}"),))
        write_record(directory, one, replace(seen, plan=plan["name"], duration_s=9.0 + number), [], run.name)
        directory.foreground_log.write_text(f"epoch 1 {MARKUP}\n")
        if number == 2:
            propose(run, one)
        if number == 4:
            repeat(run, one, seen)
    record = {**read_run(run.path).rows[0].record, "group": "group99", "number": 99, "outcome": "NOT RUN"}
    record |= {"peak_bytes": None, "headroom_bytes": None, "basis": None, "foreground": MARKUP, "reasons": [MARKUP]}
    journal.append(run.path, "group", record={**record, "directory": None, "device_name": None})
    return run


def propose(run, one):
    """What could be tried for a group that does not fit, with every kind of answer."""
    peak = {"low_bytes": 5000 * MIB, "expected_bytes": 5500 * MIB, "high_bytes": 6000 * MIB}
    known = {"training": f"mnist {MARKUP}", "text": "t", "settings": f'"batch_size": 16 {MARKUP}', "why": "why " * 30}
    found = [{**known, "peak": peak, "answer": answer} for answer in ("fits", "undecided", "does not fit")]
    found.append({**known, "peak": None, "answer": None, "why_not": f"not emulated {MARKUP}"})
    groups = {one.id: {"content_hash": one.content_hash, "proposals": found}}
    run.proposals.write_text(json.dumps({"schema": 1, "groups": groups}))


def repeat(run, one, seen):
    """A second attempt at a group; the first was made by somebody else's doing."""
    first = next(directory for directory in run.groups() if directory.path.name.endswith("_004"))
    spoiled = replace(seen, faults=(("foreign_process", f"pid 7 {MARKUP}"),), started_at="2026-11-24T05:30:00+00:00")
    write_record(first, one, spoiled, [], run.name)
    second = run.group("mnist", one.number, parallel=True, attempt=2).create()
    counted = replace(seen, attempt=2, started_at="2026-11-24T05:40:00+00:00")
    write_record(second, one, counted, [], run.name)


@pytest.fixture(scope="module")
def chromium():
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    run = fill(RunDirectory(tmp_path_factory.mktemp("run") / "run_20261124_053000"), 5)
    path = run.path / "report.html"
    path.write_text(page.document(page.Report.of([read_run(run.path)], run.path)))
    return path.as_uri()


@pytest.fixture(scope="module")
def two_gpus(tmp_path_factory):
    """Two runs on one page, one of them measured, with what changed between them."""
    folder = tmp_path_factory.mktemp("two")
    first = fill(RunDirectory(folder / "run_20261124_053000"), 3)
    second = RunDirectory(folder / "run_20261125_053000")
    second.path.mkdir()
    directory = second.group("mnist", 1, parallel=True).create()
    seen = evidence(device=device_info(name="NVIDIA GeForce RTX 2070 SUPER", driver_version="580.95"))
    seen = replace(seen, gpu_energy_j=12345.0, foreground=foreground(allocators=(simulated(9000),)))
    write_record(directory, group(training("a" * 60), training("resnet20")), seen, [], second.name)
    watts = "".join(f"{1000 + second},{100 + second % 7}\n" for second in range(60))
    (directory.energy / "gpu_power.csv").write_text(f"timestamp,power_draw_w\n{watts}")
    runs = [read_run(first.path), read_run(second.path)]
    compared = compare(runs[0].rows, runs[1].rows, (first.name, second.name))
    path = folder / "report.html"
    path.write_text(page.document(page.Report.of(runs, folder, compared)))
    return path.as_uri()


def column(chromium, name):
    """The cells of a column of the visible groups, from above."""
    script = (
        "return [...document.querySelectorAll('tbody.group:not([hidden]) .col-' + arguments[0])].map(e => e.innerText)"
    )
    return [text.split("\n")[-1] if name == "peak" else text for text in chromium.run(script, name)]


def groups(chromium):
    return column(chromium, "group")


def is_seen(chromium, selector):
    return chromium.run("return document.querySelector(arguments[0]).checkVisibility()", selector)


def test_the_page_opens_without_a_complaint_and_asks_nobody_for_anything(chromium, url):
    chromium.open(url)
    assert chromium.complaints() == []
    assert chromium.run("return performance.getEntriesByType('resource').map(e => e.name)") == []
    headline = chromium.run("return document.querySelector('.headline').innerText")
    came_out = "3 of 6 groups are predicted to share an 8 GB GPU, 1 undecided, 1 without a verdict"
    assert headline == f"{came_out}; 1 needed: the plan holds"
    assert groups(chromium) == ["group01", "group02", "group03", "group04", "group05", "group99"]


def test_markup_in_names_reasons_and_logs_stays_text(chromium, url):
    chromium.open(url)
    chromium.click(".unfold-all")
    assert chromium.run("return document.title").startswith("plan <img")
    tags = "return [...document.querySelectorAll('img, b')].filter(e => e.tagName == 'IMG' || e.innerText == 'bold')"
    assert chromium.run(tags) == []
    shown = chromium.run("return document.body.innerText")
    assert "the GPU is gone <img src=x" in shown


def test_columns_sort_as_numbers_both_ways_and_the_unknown_stays_last(chromium, url):
    chromium.open(url)
    chromium.click("[data-sort=headroom]")
    rising = column(chromium, "headroom")
    numbers = [int(text) for text in rising if text]
    assert numbers == sorted(numbers)
    assert min(numbers) < 0
    assert rising[-1] == ""
    chromium.click("[data-sort=headroom]")
    falling = column(chromium, "headroom")
    assert [int(text) for text in falling if text] == numbers[::-1]
    assert falling[-1] == ""
    sorted_heads = "return [...document.querySelectorAll('[aria-sort]')].map(e => [e.innerText, e.ariaSort])"
    assert chromium.run(sorted_heads) == [["headroom MiB", "descending"]]


def test_an_unfolded_group_moves_with_its_row(chromium, url):
    chromium.open(url)
    chromium.click(".fold")
    chromium.click("[data-sort=group]")
    chromium.click("[data-sort=group]")
    last = chromium.run("return [...document.querySelectorAll('tbody.group')].at(-1).innerText")
    assert last.startswith("group01")
    assert "Again:" in last


def test_filters_and_search_hide_rows_and_bars_and_say_how_many_are_left(chromium, url):
    chromium.open(url)
    chromium.click("[data-filter=outcome][value=FEASIBLE]")
    assert groups(chromium) == ["group02", "group03", "group99"]
    bars = "return [...document.querySelectorAll('.bar-row:not([hidden]) .label a')].map(e => e.innerText)"
    assert chromium.run(bars) == ["group02", "group03"]
    assert chromium.run("return document.querySelector('.count').innerText") == "3 of 6 groups"
    chromium.type(".find", "sensor_lost")
    assert groups(chromium) == ["group03"]
    chromium.type(".find", " nonsense")
    assert groups(chromium) == []
    assert is_seen(chromium, ".none-match")


def test_a_group_folds_by_mouse_and_by_keyboard(chromium, url):
    chromium.open(url)
    assert not is_seen(chromium, ".opened")
    chromium.click("tbody.group .col-tier")
    assert is_seen(chromium, ".opened")
    assert chromium.run("return document.querySelector('.fold').ariaExpanded") == "true"
    chromium.run("document.querySelector('.fold').focus()")
    chromium.keys(ENTER)
    assert not is_seen(chromium, ".opened")


def test_a_link_of_the_picture_opens_its_group(chromium, url):
    chromium.open(url)
    chromium.click(".bar-row:nth-child(2) .label a")
    wait = "return document.querySelectorAll('tbody.group')[1].querySelector('.fold').ariaExpanded"
    assert chromium.run(wait) == "true"
    chromium.open(f"{url}#run_20261124_053000--group04")
    assert "Again:" in chromium.run("return document.querySelectorAll('tbody.group')[3].innerText")


def test_the_picture_sorts_as_the_reader_wants(chromium, url):
    chromium.open(url)
    choose = (
        "const s = document.querySelector('.picture-order'); s.value = 'peak'; s.dispatchEvent(new Event('change'))"
    )
    chromium.run(choose)
    bars = "return [...document.querySelectorAll('.bar-row')].map(e => Number(e.dataset.peak))"
    assert chromium.run(bars) == sorted(chromium.run(bars))


def test_links_lead_to_files_that_are_there(chromium, url):
    chromium.open(url)
    chromium.click(".fold")
    links = chromium.run("return [...document.querySelectorAll('.details p a')].map(e => e.href)")
    assert len(links) >= 4
    chromium.open(links[-1])
    assert "epoch 1" in chromium.run("return document.body.innerText")


# WCAG's contrast of every text against what is behind it.
CONTRASTS = r"""
const linear = (v) => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const numbers = (text) => {
  const n = text.match(/[\d.]+/g).map(Number);
  return n.length === 4 && n[3] === 0 ? null : n.slice(0, 3);
};
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const colour = numbers(getComputedStyle(e).backgroundColor);
    if (colour) return colour;
  }
  return [255, 255, 255];
};
const found = [];
for (const e of document.querySelectorAll('body *')) {
  const says = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!says || !e.checkVisibility() || e.closest('script, style, title')) continue;
  const style = getComputedStyle(e), ink = numbers(e.closest('svg') ? style.fill : style.color);
  const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) found.push([e.tagName, e.getAttribute('class'), e.textContent.slice(0, 30), contrast]);
}
return found;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_has_a_contrast_of_four_and_a_half(chromium, url, dark):
    chromium.open(url, dark=dark)
    chromium.click(".unfold-all")
    background = chromium.run("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 150) == dark
    assert chromium.run(CONTRASTS) == []


@pytest.mark.parametrize("width", [320, 420, 760, 1920])
def test_nothing_is_wider_than_the_screen(chromium, url, two_gpus, width):
    for page_url in (url, two_gpus):
        chromium.open(page_url, width=width)
        chromium.click(".unfold-all")
        assert chromium.run("return document.documentElement.scrollWidth") <= width


def test_a_phone_sorts_too(chromium, url):
    """The heads of the table used to be off its screen."""
    chromium.open(url, width=420)
    chromium.click("table.groups thead th:first-child button")
    assert chromium.run("return document.querySelector('table.groups th').getAttribute('aria-sort')") == "ascending"


def test_one_small_group_is_not_wider_than_a_phone(chromium, tmp_path):
    """Its limit is at the right end of the picture."""
    run = fill(RunDirectory(tmp_path / "results/run_1"), 1)
    (tmp_path / "report.html").write_text(page.document(page.Report.of([read_run(run.path)], tmp_path)))
    chromium.open((tmp_path / "report.html").as_uri(), width=420)
    assert chromium.run("return document.documentElement.scrollWidth") <= 420
    assert "limit 7500 MiB" in chromium.run("return document.body.innerText")


def test_every_attempt_at_a_group_unfolds_with_its_own_picture(chromium, url):
    chromium.open(url)
    chromium.click("tbody.group:nth-of-type(4) .fold")
    attempts = "return [...document.querySelectorAll('.attempt > summary')].map(e => e.innerText)"
    first, second = chromium.run(attempts)
    assert first.startswith("attempt 1: INCONCLUSIVE")
    assert second.endswith("this one decides")
    assert not is_seen(chromium, ".attempt .timeline")
    chromium.click(".attempt > summary")
    assert is_seen(chromium, ".attempt .timeline")


def test_proposals_carry_their_predicted_peak_and_its_colour(chromium, url):
    chromium.open(url)
    colours = "return [...document.querySelectorAll('.forecast')].map(e => [e.innerText, getComputedStyle(e).color])"
    found = chromium.run(colours)
    assert [text for text, _ in found] == [
        f"5000-6000 MiB: {answer}" for answer in ("fits", "undecided", "does not fit")
    ]
    assert len({colour for _, colour in found}) == 3


def test_the_energy_of_the_gpu_is_a_tile_that_says_of_how_many_groups(chromium, two_gpus):
    chromium.open(two_gpus)
    tiles = chromium.run("return [...document.querySelectorAll('.tile')].map(e => e.innerText.replace(/\\n/g, ' '))")
    assert [text for text in tiles if "energy" in text] == ["3.4 Wh energy of the GPU"]


def test_the_keyboard_alone_sorts_searches_and_unfolds(chromium, url):
    chromium.open(url)
    chromium.run("document.querySelector('[data-sort=peak]').focus()")
    chromium.keys(ENTER)
    chromium.keys(ENTER)
    first = groups(chromium)[0]
    reached = []
    for _ in range(6):
        chromium.keys(TAB)
        reached.append(chromium.run("return document.activeElement.innerText.trim()"))
    assert first in reached, "behind the heads of the columns comes the first group"
    chromium.run("document.querySelector('.fold').focus()")
    chromium.keys(SPACE)
    assert is_seen(chromium, ".opened")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert chromium.run(outline) == "solid", "one sees where one is"


def test_it_prints_with_its_colours_and_without_a_window_of_bars(chromium, url):
    chromium.open(url)
    pdf = base64.b64decode(chromium.tool("Page.printToPDF", printBackground=False)["data"])
    pages = re.findall(rb"/Type\s*/Page\b", pdf)
    assert pdf.startswith(b"%PDF")
    assert 1 <= len(pages) <= 6
    chromium.tool("Emulation.setEmulatedMedia", media="print")
    assert chromium.run("return getComputedStyle(document.querySelector('.bars')).maxHeight") == "none"
    adjust = "return getComputedStyle(document.querySelector('.bar-svg rect')).printColorAdjust"
    assert chromium.run(adjust) == "exact"


def test_on_paper_there_are_no_controls(chromium, url):
    chromium.open(url)
    chromium.tool("Emulation.setEmulatedMedia", media="print")
    assert not is_seen(chromium, ".filters-own")
    assert is_seen(chromium, ".headline")


def test_without_scripts_everything_is_there(chromium, url):
    chromium.tool("Emulation.setScriptExecutionDisabled", value=True)
    try:
        chromium.open(url)
        shown = chromium.tool("Runtime.evaluate", expression="document.querySelector('.opened').checkVisibility()")
        assert shown["result"]["value"] is True
    finally:
        chromium.tool("Emulation.setScriptExecutionDisabled", value=False)


def test_of_many_groups_the_details_are_built_when_they_are_asked_for(chromium, tmp_path):
    run = fill(RunDirectory(tmp_path / "run_20261124_053000"), details.MANY + 1)
    path = tmp_path / "report.html"
    path.write_text(page.document(page.Report.of([read_run(run.path)], tmp_path)))
    chromium.open(path.as_uri())
    assert chromium.run("return document.querySelectorAll('.details').length") == 0
    chromium.click(".fold")
    assert is_seen(chromium, ".details")
    assert chromium.complaints() == []


def test_the_page_of_a_run_is_the_same_with_pytests_own_table_folded_away(chromium, tmp_path):
    run = Project(tmp_path, {"group02": "infeasible", "group03": "bug"}, 3).run("feasibility")
    assert run.exit_code == 1
    chromium.open((tmp_path / "reports/latest/report.html").as_uri(), width=420)
    assert chromium.complaints() == []
    assert groups(chromium) == ["group01", "group02", "group03"]
    assert chromium.run("return document.documentElement.scrollWidth") <= 420
    assert not is_seen(chromium, "#results-table")
    chromium.click("details.pytest > summary")
    assert is_seen(chromium, "#results-table")
    chromium.click("tbody.group:nth-of-type(3) .fold")
    assert "ZeroDivisionError" in chromium.run("return document.querySelectorAll('tbody.group')[2].textContent")
    (folder,) = tmp_path.glob("results/run_*")
    rebuilt = page.body(page.Report.of([read_run(folder)], (tmp_path / "reports/latest").resolve()))
    assert rebuilt in (tmp_path / "reports/latest/report.html").read_text(), "one renderer, the same figures"


@pytest.fixture
def large_page(tmp_path, monkeypatch):
    """The page of more groups than fit into one file, where that is more than three."""
    monkeypatch.setattr(large_table, "LARGE", 3)
    monkeypatch.setattr(large_table, "GROUPS_PER_FILE", 2)
    run = fill(RunDirectory(tmp_path / "run_20261124_053000"), 5)
    report = page.Report.of([read_run(run.path)], tmp_path)
    (tmp_path / "report.html").write_text(page.document(report))
    page.write_beside(report)
    return tmp_path / "report.html"


def test_a_page_of_very_many_groups_takes_what_opens_from_beside_it(chromium, large_page):
    chromium.open(large_page.as_uri())
    assert chromium.run("return document.querySelectorAll('.details').length") == 0
    chromium.click("tbody.group:nth-of-type(4) .fold")
    wait_until(lambda: chromium.run("return document.querySelectorAll('.details').length") == 1)
    assert is_seen(chromium, ".details svg")
    assert "group04" in chromium.run("return document.querySelector('.details').textContent")
    assert chromium.run("return document.title") != "owned"
    assert chromium.complaints() == []


def test_a_page_of_very_many_groups_is_sorted_searched_and_filtered(chromium, large_page):
    chromium.open(large_page.as_uri())
    chromium.click("[data-sort=peak]")
    chromium.click("[data-sort=peak]")
    assert groups(chromium)[-1] == "group99", "the unknown stays last"
    peaks = [float(value.split("-")[0]) for value in column(chromium, "peak") if value]
    assert peaks == sorted(peaks, reverse=True)
    chromium.type(".find", "group03")
    wait_until(lambda: groups(chromium) == ["group03"])
    assert chromium.run("return document.querySelector('.count').textContent") == "1 of 6 groups"
    chromium.type(".find", "x")
    wait_until(lambda: groups(chromium) == [])
    assert is_seen(chromium, ".none-match")


def test_a_link_opens_its_group_in_a_page_of_very_many(chromium, large_page):
    chromium.open(large_page.as_uri())
    chromium.run("document.querySelector('.bar-row a').click()")
    wait_until(lambda: chromium.run("return document.querySelectorAll('.details').length") == 1)


def test_a_page_that_was_copied_without_its_folder_says_so(chromium, large_page):
    chromium.open(large_page.as_uri())
    assert not is_seen(chromium, ".lost")
    large_page.with_name("report_groups").joinpath("details_0000.js").unlink()
    chromium.click("tbody.group .fold")
    wait_until(lambda: "copy the folder" in chromium.run("return document.querySelector('.opened').textContent"))
    assert "report_groups/details_0000.js" in chromium.run("return document.querySelector('.opened').textContent")
    large_page.with_name("report_groups").rename(large_page.with_name("elsewhere"))
    chromium.open(large_page.as_uri())
    assert is_seen(chromium, ".lost")
