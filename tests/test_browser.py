"""The page in a real browser. Skipped, with the reason, where there is none."""

import base64
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import MISSING, browser
from builders import device_info, evidence, foreground, out_of_memory, predicted_evidence, simulated
from groups import training
from records import begin, finish, planned, propose, run_in
from stand_in_project import Project
from waiting import wait_until

from colocate.report.comparison import compare
from colocate.report.html import page
from colocate.results import journal
from colocate.results.layout import RunDirectory
from colocate.results.reader import read_run
from colocate.units import MIB

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING is not None, reason=f"{MISSING} is not installed (apt-get install chromium-driver)"),
]

MARKUP = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"

# The accessibility checker of Deque (npm install axe-core); no part of the project.
AXE = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))

ENTER, TAB, SPACE = "\ue007", "\ue004", "\ue00d"


def fill(run, num_groups):
    """A run of groups with peaks of 900 MiB, 1900 MiB and so on, of which the second does not fit."""
    name = f"plan {MARKUP}"
    names = [f"group{number:02}" for number in (*range(1, num_groups + 1), 99)]
    begin(run, name=name, groups=names, tiers={"low": 1.0, "high": 0.8})
    for number in range(1, num_groups + 1):
        seen = predicted_evidence(900 + 1000 * (number - 1) % 6000, 100, plan=name, duration_s=9.0 + number)
        if number == 2:
            wrong = foreground(out_of_memory=(out_of_memory(),), allocators=(simulated(9000),))
            seen = replace(seen, foreground=wrong)
        if number == 3:
            seen = replace(seen, faults=(("sensor_lost", f"the GPU is gone {MARKUP}"),))
        if number == 4:  # begun again, for the first attempt was spoiled by somebody else's doing
            finish(run, 4, replace(seen, faults=(("foreign_process", f"pid 7 {MARKUP}"),)), tier="high")
        given = planned(number, tier="low" if number % 2 else "high")
        finish(run, number, seen, tier=given.tier).foreground_log.write_text(f"epoch 1 {MARKUP}\n")
        if number == 2:
            propose(run, given, *proposals())
    record = {**read_run(run.path).results[0].to_json(), "group": "group99", "number": 99, "outcome": "NOT RUN"}
    record |= {"peak_bytes": None, "headroom_bytes": None, "basis": None, "foreground": MARKUP, "reasons": [MARKUP]}
    journal.append(run.path, "group", record={**record, "directory": None, "device_name": None})
    return run


def proposals():
    """What could be tried for a group that does not fit, with every kind of answer."""
    peak = {"low_bytes": 5000 * MIB, "expected_bytes": 5500 * MIB, "high_bytes": 6000 * MIB}
    known = {"training": f"mnist {MARKUP}", "text": "t", "settings": f'"batch_size": 16 {MARKUP}', "why": "why " * 30}
    yield from ({**known, "peak": peak, "answer": answer} for answer in ("fits", "undecided", "does not fit"))
    yield {**known, "peak": None, "answer": None, "why_not": f"not emulated {MARKUP}"}


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
    second = run_in(folder, 25)
    seen = evidence(device=device_info(name="NVIDIA GeForce RTX 2070 SUPER", driver_version="580.95"))
    seen = replace(seen, gpu_energy_j=12345.0, foreground=foreground(allocators=(simulated(9000),)))
    directory = finish(second, 1, seen, foreground=training("a" * 60))
    watts = "".join(f"{1000 + second},{100 + second % 7}\n" for second in range(60))
    (directory.energy / "gpu_power.csv").write_text(f"timestamp,power_draw_w\n{watts}")
    runs = [read_run(first.path), read_run(second.path)]
    compared = compare(runs[0].results, runs[1].results, (first.name, second.name))
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


def texts(chromium, selector):
    return chromium.run("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)


def test_the_page_shows_the_answer_first_asks_nobody_for_anything_and_keeps_foreign_markup_as_text(chromium, url):
    chromium.open(url)
    assert chromium.complaints() == []
    resources = chromium.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith("file:") for name in resources)
    (headline,) = texts(chromium, ".headline")
    came_out = "3 of 6 groups are predicted to share an 8 GB GPU, 1 inconclusive, 1 without a verdict"
    assert headline == f"{came_out}; 1 needed: the plan holds"
    assert groups(chromium) == ["group01", "group02", "group03", "group04", "group05", "group99"]
    chromium.click(".unfold-all")
    assert chromium.run("return document.title").startswith("plan <img")
    tags = "return [...document.querySelectorAll('img, b')].filter(e => e.tagName == 'IMG' || e.innerText == 'bold')"
    assert chromium.run(tags) == []
    assert "the GPU is gone <img src=x" in chromium.run("return document.body.innerText")
    forecasts = chromium.run("return [...document.querySelectorAll('.forecast')].map(e => getComputedStyle(e).color)")
    assert len(set(forecasts)) == 3, "each answer has a colour of its own"


def test_groups_are_sorted_searched_and_filtered_and_the_picture_follows(chromium, url):
    chromium.open(url)
    for falling in (False, True):
        chromium.click("[data-sort=headroom]")
        found = column(chromium, "headroom")
        numbers = [int(text) for text in found if text]
        assert numbers == sorted(numbers, reverse=falling)
        assert found[-2:] == ["", ""], "the unknown, and what nothing carries, stay last"
    heads = chromium.run("return [...document.querySelectorAll('[aria-sort]')].map(e => [e.innerText, e.ariaSort])")
    assert heads == [["headroom MiB", "descending"]]
    chromium.click("[data-filter=outcome][value=FEASIBLE]")
    assert sorted(groups(chromium)) == ["group02", "group03", "group99"]
    assert texts(chromium, ".bar-row:not([hidden]) .label a") == ["group02"], "the third has no peak that counts"
    assert texts(chromium, ".count") == ["3 of 6 groups"]
    chromium.type(".find", "sensor_lost")
    assert groups(chromium) == ["group03"]
    chromium.type(".find", " nonsense")
    assert groups(chromium) == []
    assert is_seen(chromium, ".none-match")


def test_the_keyboard_alone_sorts_searches_and_unfolds(chromium, url):
    chromium.open(url)
    chromium.run("document.querySelector('[data-sort=peak]').focus()")
    chromium.keys(ENTER)
    assert groups(chromium)[0] == "group01"
    chromium.run("document.querySelector('.fold').focus()")
    chromium.keys(SPACE)
    assert is_seen(chromium, ".opened")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert chromium.run(outline) == "solid", "one sees where one is"
    chromium.keys(ENTER)
    assert not is_seen(chromium, ".opened")
    chromium.click("tbody.group .col-tier")
    assert is_seen(chromium, ".opened"), "and the mouse does too"
    assert chromium.run("return document.querySelector('.fold').ariaExpanded") == "true"


def test_a_link_to_a_group_opens_it_every_time_and_below_the_head_of_the_table(chromium, url):
    """The same link used to do nothing the second time, and the row lay behind the head."""
    chromium.open(f"{url}#run_20261124_053000--group04")
    place = (
        "const body = document.querySelectorAll('tbody.group')[3], head = document.querySelector('.groups thead th');"
        "return [body.querySelector('.fold').ariaExpanded,"
        " body.getBoundingClientRect().top >= head.getBoundingClientRect().bottom - 1]"
    )
    assert chromium.run(place) == ["true", True]
    chromium.run("document.querySelectorAll('.fold')[3].click()")
    for _ in range(2):
        chromium.click(".bar-row:nth-child(3) .label a")
        assert chromium.run(place)[0] == "true"
        chromium.run("document.querySelectorAll('.fold')[3].click()")
    chromium.run("document.querySelectorAll('.fold')[3].click()")
    assert not is_seen(chromium, ".attempt .timeline")
    chromium.click(".attempt > summary")
    assert is_seen(chromium, ".attempt .timeline")


def test_the_memory_over_time_is_read_by_pointing(chromium, url):
    chromium.open(f"{url}#run_20261124_053000--group01")
    chromium.run("document.querySelector('.plot-box').scrollIntoView({block: 'center'})")
    left, top, width = chromium.run(
        "const r = document.querySelector('.plot-box').getBoundingClientRect(); return [r.left, r.top + 50, r.width]"
    )
    chromium.tool("Input.dispatchMouseEvent", type="mouseMoved", x=left + width / 2, y=top)
    assert re.search(r"^at [\d.]+ s: foreground .* · GPU \d+ MiB$", texts(chromium, ".readout output")[0])


def test_files_are_linked_and_a_page_that_travels_alone_says_so(chromium, url, tmp_path):
    chromium.open(url)
    assert not is_seen(chromium, ".alone")
    chromium.click(".fold")
    links = chromium.run("return [...document.querySelectorAll('.details p a.beside')].map(e => e.href)")
    assert len(links) >= 4
    alone = tmp_path / "report.html"
    alone.write_bytes(Path(url.removeprefix("file://")).read_bytes())
    chromium.open(links[-1])
    assert "epoch 1" in chromium.run("return document.body.innerText")
    chromium.open(alone.as_uri())
    wait_until(lambda: is_seen(chromium, ".alone"))
    assert "not beside this page" in texts(chromium, ".alone")[0]


def test_every_command_is_copied_by_a_button(chromium, url):
    chromium.open(url)
    chromium.tool("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    commands = texts(chromium, ".command code")
    assert len(commands) >= 3
    chromium.click(".inconclusive .copy")
    wait_until(lambda: texts(chromium, ".inconclusive .copy") == ["copied"])
    assert chromium.run("return document.querySelectorAll('.command').length") == len(
        chromium.run("return [...document.querySelectorAll('.command .copy')]")
    )


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
    assert chromium.run("return document.querySelectorAll('main').length") == 1
    unreachable = "return [...document.querySelectorAll('.scroll, .bars.many, pre')].filter(e => e.tabIndex < 0).length"
    assert chromium.run(unreachable) == 0, "what scrolls is reached by keyboard"
    badges = texts(chromium, ".group-row .badge")
    assert {text[0] for text in badges} == {"✓", "✗", "?"}, "verdicts are told apart without colours"


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not there: npm install axe-core, or AXE_CORE=path/axe.min.js")
def test_axe_finds_nothing(chromium, url, two_gpus):
    chromium.do("/timeouts", {"script": 120_000})
    for address, width, dark in ((url, 1280, False), (two_gpus, 420, True)):
        chromium.open(address, width=width, dark=dark)
        chromium.click(".unfold-all")
        chromium.run(f"{AXE.read_text()}; axe.run().then((found) => {{ window.found = found.violations; }})")
        wait_until(lambda: chromium.run("return window.found !== undefined"), 100)
        assert chromium.run("return found.map((one) => [one.id, one.nodes[0].html])") == []


def test_nothing_is_wider_than_a_screen_and_no_table_is_cut(chromium, url, two_gpus):
    cut = "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    for page_url in (url, two_gpus):
        for width in (320, 420, 760, 1920):
            chromium.open(page_url, width=width)
            chromium.click(".unfold-all")
            assert chromium.run("return document.documentElement.scrollWidth") <= width
            assert chromium.run(cut) == 0, width
    chromium.open(url, width=420)
    chromium.click("table.groups thead th:first-child button")
    assert chromium.run("return document.querySelector('table.groups th').getAttribute('aria-sort')") == "ascending"


def test_it_prints_on_a4_with_its_colours_and_without_controls_or_the_layout_of_a_phone(chromium, url):
    chromium.open(url)
    pdf = base64.b64decode(chromium.tool("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"])
    assert pdf.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 6
    boxes = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)", pdf)
    assert {(round(float(width)), round(float(height))) for width, height in boxes} == {(595, 842)}
    chromium.open(url, width=794)  # that of a sheet: a media query of screens must not match it
    chromium.tool("Emulation.setEmulatedMedia", media="print")
    assert chromium.run("return getComputedStyle(document.querySelector('.group-row')).display") == "table-row"
    assert chromium.run("return getComputedStyle(document.querySelector('.bars')).maxHeight") == "none"
    adjust = "return getComputedStyle(document.querySelector('.bar-svg rect')).printColorAdjust"
    assert chromium.run(adjust) == "exact"
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


def test_the_page_of_a_run_is_the_same_with_pytests_own_table_folded_away(chromium, tmp_path):
    run = Project(tmp_path, {"group02": "infeasible", "group03": "bug"}, 3).run("feasibility")
    assert run.code == 1
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


def test_a_page_of_very_many_groups_has_details_of_those_that_do_not_fit(chromium, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LARGE", 3)
    run = fill(RunDirectory(tmp_path / "run_20261124_053000"), 5)
    page.write(page.Report.of([read_run(run.path)], tmp_path))
    chromium.open((tmp_path / "report.html").as_uri())
    assert chromium.run("return document.querySelectorAll('tbody.group').length") == 6
    assert chromium.run("return document.querySelectorAll('.details').length") == 3
    verdicts = chromium.run(
        "return Array.from(document.querySelectorAll('.details'), (one) => one.closest('tbody').dataset.outcome)"
    )
    assert "FEASIBLE" not in verdicts or verdicts.count("FEASIBLE") < 3
    assert chromium.complaints() == []
