"""The page: what one sends to a colleague. One body for the page that a run writes and for the one that is rebuilt.

Everything is taken from run directories. Knows neither pytest nor pytest-html; the plugin puts the body into
pytest-html's page, `document` into one of its own.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path

from colocate import __version__
from colocate.files import write_text
from colocate.plan import ROLES, needed
from colocate.report.comparison import Comparison, section
from colocate.report.html import (
    constrained_device,
    details,
    large_table,
    proposals,
    remedies,
    stress,
    table,
    what_next,
)
from colocate.report.html.elements import Html, el, scrolling_table
from colocate.report.html.peak_chart import picture
from colocate.results import (
    Part,
    Row,
    StoredRun,
    basis_of,
    headroom_text,
    instant,
    mapping,
    over_budget_text,
    parts,
    peak_text,
)
from colocate.units import duration_text, energy_text, format_mib, format_size, plural
from colocate.verdict import Outcome

STYLESHEET = Path(__file__).with_name("style.css")
SCRIPT = Path(__file__).with_name("page.js")

SIMULATED = "simulated"


@dataclass(frozen=True)
class Report:
    """What a page is about: runs in parts, where the page lies, and how they compare with another."""

    parts: tuple[Part, ...]
    folder: Path
    comparison: Comparison | None = None
    name: str = "report.html"

    @classmethod
    def of(
        cls, runs: list[StoredRun], folder: Path, comparison: Comparison | None = None, name: str = "report.html"
    ) -> "Report":
        """The report of some runs; ``folder`` and ``name`` are where the page will lie."""
        return cls(tuple(parts(runs)), folder, comparison, name)

    @property
    def runs(self) -> dict[str, StoredRun]:
        """The runs of all parts by their names."""
        return {run.name: run for part in self.parts for run in part.runs}

    @property
    def rows(self) -> list[Row]:
        """The groups of all parts."""
        return [row for part in self.parts for row in part.rows]

    @property
    def title(self) -> str:
        """The question, with the name of the plan."""
        names = dict.fromkeys(part.plan_name for part in self.parts)
        return f"{', '.join(names) or 'no run'}: can they share one GPU?"


def body(report: Report) -> Html:
    """Everything between the title and the end, with the script that makes it move.

    That of very many groups needs the files that `write_beside` writes.
    """
    runs = report.runs
    content = [
        banners(report),
        [_part(part, report) for part in report.parts],
        _table(report, runs),
        section(report.comparison) if report.comparison else None,
        [
            [section_of(part) for part in report.parts]
            for section_of in (stress.section, proposals.section, remedies.section, what_next.section)
        ],
        [_made_with(run) for run in runs.values()],
    ]
    script = Html(SCRIPT.read_text(encoding="utf-8"))
    return Html(el("div", content, class_="colocate") + el("script", script))


def write_beside(report: Report, processes: int = 1) -> None:
    """Write what a page of very many groups has beside it; takes away what a former page had there.

    With several ``processes`` this one is forked, so it must not have other threads.

    Raises:
        OSError: it cannot be written.
    """
    runs, folder = report.runs, report.folder
    large_table.write_details(
        folder / report.name,
        report.rows,
        lambda row: details.details(row, runs.get(row.run), folder, many=True),
        processes,
    )


def write(report: Report) -> None:
    """Write the page and what it has beside it; forks where that is much, so this process must not have other threads.

    Raises:
        OSError: it cannot be written.
    """
    write_text(report.folder / report.name, document(report))
    write_beside(report, len(os.sched_getaffinity(0)))


def document(report: Report) -> str:
    """A whole page."""
    now = f"{datetime.now():%d %B %Y, %H:%M}"
    style = STYLESHEET.read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(report.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(report.title)}</h1>\n<p>Rebuilt {now} by colocate {__version__} from what is on disk.</p>\n"
        f"{body(report)}\n</body>\n</html>\n"
    )


# --- on top


def banners(report: Report) -> Html:
    """What a reader must not overlook: numbers that nobody measured, groups without a verdict, a run that goes on."""
    return el("div", [el("p", el("b", head), text, class_=f"banner {kind}") for kind, head, text in _warnings(report)])


def _warnings(report: Report) -> Iterator[tuple[str, str, str]]:
    simulated = [row for row in report.rows if SIMULATED in str(row.device.get("driver_version") or "")]
    if simulated:
        which = plural(len(simulated), "group")
        yield "loud", "SIMULATED NVML:", f" {which} ran on a make-believe GPU of the tests. No number here is real."
    for part in report.parts:
        missing = part.plan_verdict.missing()
        if missing:
            head, _, rest = missing.partition(":")
            yield "", f"{head}:", f"{rest}{_of(part, report)}"
        over = over_budget_text(row.record for row in part.counting)
        if over is not None:
            yield "", "OVER BUDGET:", f" {over}{_of(part, report)}. A budget changes no verdict."
    if any(row.record["basis"] == "predicted" for row in report.rows):
        text = " these verdicts rest on a simulated allocator and its error bars, not on a GPU. "
        yield "", "PREDICTED:", text + "Measure before you rely on them."
    yield from constrained_device.warnings(report.rows)
    for part in report.parts:
        for run in part.runs:
            if run.goes_on:
                yield "", "NOT ENDED:", f" {run.name} goes on, or was cut off before it could say so."
        again = [name for name, found in _outcomes(part).items() if len(found) > 1]
        if again:
            yield (
                "",
                "SEVERAL RUNS DISAGREE:",
                f" {', '.join(_few(again))}{_of(part, report)}. The last one counts; all are in the table.",
            )


def _few(names: Sequence[str]) -> list[str]:
    more = len(names) - large_table.MOST_ENTRIES
    return list(names) if more <= 0 else [*names[: large_table.MOST_ENTRIES], f"{more} more"]


def _outcomes(part: Part) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in part.rows:
        found.setdefault(row.group, set()).add(str(row.record["outcome"]))
    return found


def _of(part: Part, report: Report) -> str:
    return f" on {_gpu_name(part)}" if len(report.parts) > 1 else ""


def _part(part: Part, report: Report) -> Html:
    kind = {"holds": "v-ok", "fails": "v-bad"}.get(part.plan_verdict.holding, "v-warn")
    content = [
        el("h2", headline(part), class_=f"headline {kind}"),
        el("p", _standing(part), class_="standing"),
        tiles(part),
        (large_table.pictures if large_table.is_large(part.rows) else picture)(part.counting, part.limit_bytes),
        _tiers(part),
    ]
    return el("section", content, class_="part", aria_label=f"{part.plan_name} on {_gpu_name(part)}")


def headline(part: Part) -> str:
    """The plan's verdict in one sentence."""
    plan_verdict, gpu = part.plan_verdict, part.gpu_bytes
    size = "a GPU" if gpu is None else _with_article(format_size(gpu) + " GPU")
    verb = "can share" if plan_verdict.total else "share"
    if all(row.record["basis"] in ("predicted", None) for row in part.rows) and any(
        row.record["basis"] for row in part.rows
    ):
        verb = "are predicted to share"
    elif plan_verdict.complete:
        verb = "share"
    counts = {
        "undecided": plan_verdict.count(Outcome.INCONCLUSIVE),
        "without a verdict": len(plan_verdict.without_verdict),
    }
    others = "".join(f", {number} {how}" for how, number in counts.items() if number)
    found = f"{plan_verdict.feasible} of {plan_verdict.total} groups {verb} {size}{others}"
    return f"{found}; {plan_verdict.needed} needed: the plan {plan_verdict.holding}"


def _with_article(words: str) -> str:
    vowel = words.startswith(("8", "11 ", "18 "))
    return f"{'an' if vowel else 'a'} {words}"


def _gpu_name(part: Part) -> str:
    names = dict.fromkeys(str(row.record["device_name"]) for row in part.rows if row.record["device_name"])
    return ", ".join(names) or "no GPU"


def _standing(part: Part) -> Html:
    """Basis, GPU, driver, date and time in one line."""
    records = [row.record for row in part.rows]
    started = min(
        filter(None, (instant(run.started_at) for run in part.runs)), default=None, key=lambda at: at.timestamp()
    )
    durations = [run.duration_s for run in part.runs]
    known = [duration for duration in durations if duration is not None]
    facts = [
        basis_of(records),
        f"driver {part.first('driver_version')}" if part.first("driver_version") else None,
        None if started is None else f"{started.astimezone():%d %B %Y, %H:%M}",
        f"took {duration_text(sum(known))}" if known else None,
        ", ".join(run.name for run in part.runs),
    ]
    return el("span", [(" · " if place else "", fact) for place, fact in enumerate(filter(None, facts))])


def tiles(part: Part) -> Html:
    """The numbers that one asks for first."""
    plan_verdict, rows = part.plan_verdict, part.counting
    shown = [
        _tile(f"{plan_verdict.feasible} of {plan_verdict.total}", "feasible", "v-ok" if plan_verdict.feasible else "")
    ]
    for outcome, kind in ((Outcome.INFEASIBLE, "v-bad"), (Outcome.INCONCLUSIVE, "v-warn")):
        count = plan_verdict.count(outcome)
        shown.append(_tile(str(count), outcome.lower(), kind if count else ""))
    peaks = [row for row in rows if row.record["peak_bytes"] is not None]
    if peaks:
        highest = max(peaks, key=lambda row: row.record["peak_bytes"])
        shown.append(_tile(peak_text(highest.record), f"highest peak, {highest.group}"))
    rooms = [row for row in rows if row.record["headroom_bytes"] is not None]
    if rooms:
        least = min(rooms, key=lambda row: row.record["headroom_bytes"])
        shown.append(_tile(headroom_text(least.record), f"least headroom, {least.group}"))
    shown.append(_tile(format_mib(part.limit_bytes), f"limit, of {format_mib(part.gpu_bytes)}"))
    spent = sum(row.record["duration_s"] or 0.0 for row in part.rows)
    if spent:
        shown.append(_tile(duration_text(spent), "time of all groups"))
    energy = [row.evidence.get("gpu_energy_j") for row in part.rows]
    known = [joules for joules in energy if joules is not None]
    if known:
        of = "" if len(known) == len(part.rows) else f", {len(known)} of {len(part.rows)} groups"
        shown.append(_tile(energy_text(sum(known)), f"energy of the GPU{of}"))
    return el("div", shown, class_="tiles")


def _tile(number: str, text: str, kind: str = "") -> Html:
    return el("div", el("b", number, class_=kind or None), el("span", text), class_="tile")


def _tiers(part: Part) -> Html | None:
    """What the plan expects of every tier, against what came out."""
    names = list(dict.fromkeys(row.record["tier"] for row in part.rows if row.record["tier"]))
    if not names:
        return None
    plans = [mapping(run.plan.get("tiers")) for run in part.runs]
    expected = {name: next((plan[name] for plan in plans if name in plan), None) for name in names}
    order = list(next(filter(None, plans), {}))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    numbers = ("groups", "expected", "feasible", "infeasible", "undecided")
    rows = [_tier(name, expected[name], _outcomes_of_tier(part, name)) for name in names]
    found = scrolling_table("plain", ("tier", *numbers, "came out"), rows, numbers)
    return el("section", el("h2", "Expected success by tier"), found, class_="tiers")


def _outcomes_of_tier(part: Part, tier: str) -> list[str | None]:
    return [part.plan_verdict.outcomes.get(row.group) for row in part.counting if row.record["tier"] == tier]


def _tier(name: str, rate: float | None, outcomes: Sequence[str | None]) -> Html:
    total = len(outcomes)
    feasible, infeasible = outcomes.count(Outcome.FEASIBLE), outcomes.count(Outcome.INFEASIBLE)
    open_ = total - feasible - infeasible
    wanted = None if rate is None else needed(rate, total)
    if wanted is None:
        came, kind = "nothing was expected", ""
    elif feasible >= wanted:
        came, kind = "as expected", "v-ok"
    else:
        came, kind = ("below", "v-bad") if feasible + open_ < wanted else ("open", "v-warn")
    expected = "" if rate is None else f"{rate * 100:g} % ({wanted} of {total})"
    share = f"{feasible} ({feasible / total:.0%})" if total else "0"
    numbers = [el("td", cell, class_="num") for cell in (total, expected, share, infeasible, open_)]
    return el("tr", el("th", name, scope="row"), numbers, el("td", el("b", came, class_=kind or None)))


# --- the groups


def _table(report: Report, runs: dict[str, StoredRun]) -> Html:
    rows = report.rows
    if large_table.is_large(rows):
        return large_table.section(report.folder / report.name, rows)
    names = table.columns(rows)
    many = len(rows) > details.MANY
    bodies = [
        table.body(row, names, details.details(row, runs.get(row.run), report.folder, many=many), lazy=many)
        for row in rows
    ]
    unfolded = Html("<noscript><style>.opened[hidden]{display:table-row!important}.js{display:none}</style></noscript>")
    return el(
        "section",
        el("h2", "Groups"),
        unfolded,
        table.filters(rows),
        el("table", table.head(names), bodies, class_="groups"),
        el("p", "No group matches.", class_="none-match muted", hidden=True),
        class_="groups-section",
    )


# --- below the groups


def _made_with(run: StoredRun) -> Html | None:
    versions = {**mapping(run.info.get("versions"))}
    for row in run.rows:
        versions |= {k: v for k, v in mapping(row.evidence.get("versions")).items() if k not in versions}
        torch = [mapping(a).get("torch") for role in ROLES for a in row.member(role).get("allocators") or ()]
        versions.setdefault("torch", next(filter(None, torch), None))
    shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return el("p", f"{run.name}: {shown}." if shown else run.name, class_="muted made-with")


def polished(html: str) -> str:
    """A page of pytest-html made fit for a phone's screen, and without the commas of counts that are hidden."""
    meta = '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    html = html.replace("<html>", '<html lang="en">', 1)
    html = html.replace('<meta charset="utf-8"/>', f'<meta charset="utf-8"/>\n    {meta}', 1)
    return re.sub(r'(<span class="\w+">\d+ [A-Z][a-z ]+),</span>', r"\1</span>", html)
