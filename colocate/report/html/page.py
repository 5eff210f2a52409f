# SPDX-License-Identifier: Apache-2.0
"""The page: what one sends to a colleague. One body for the page that a run writes and for the one that is rebuilt.

Everything is taken from run directories. Knows neither pytest nor pytest-html; the plugin puts the body into
pytest-html's page, `document` into one of its own. Of more than `LARGE` groups only so many have details.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from colocate import __version__
from colocate.advice import what_next
from colocate.files import write_text
from colocate.plan import needed
from colocate.report import comparison as compared
from colocate.report.comparison import Comparison
from colocate.report.html import advice, details, peak_chart, table
from colocate.report.html.templating import HERE, asset, macro, render
from colocate.results import (
    GroupResult,
    Part,
    RunDirectory,
    StoredRun,
    basis_of,
    carries_peak,
    headroom_text,
    instant,
    over_budget_text,
    parts,
    peak_text,
)
from colocate.units import duration_text, energy_text, format_mib, format_size, plural
from colocate.verdict import Outcome

STYLESHEET = HERE / "style.css"

SIMULATED = "simulated"

LARGE = 1000  # groups of a page that have details

_TIER_HEADS = ("tier", "groups", "expected", "feasible", "infeasible", "inconclusive", "came out")

_CONSTRAINED = (
    "Memory runs out as on a GPU of that size. Its speed, the size of a CUDA context, the workspaces of cuBLAS and "
    "cuDNN and the choice of kernels are those of the large GPU, and a program that asks how much memory the GPU has "
    "is told the large GPU's."
)


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
        """Report some runs; ``folder`` and ``name`` are where the page will lie."""
        return cls(tuple(parts(runs)), folder, comparison, name)

    @property
    def runs(self) -> dict[str, StoredRun]:
        """The runs of all parts by their names."""
        return {run.name: run for part in self.parts for run in part.runs}

    @property
    def rows(self) -> list[GroupResult]:
        """The groups of all parts."""
        return [row for part in self.parts for row in part.results]

    @property
    def title(self) -> str:
        """The question, with the name of the plan."""
        names = dict.fromkeys(part.plan_name for part in self.parts)
        return f"{', '.join(names) or 'no run'}: can they share one GPU?"


def body(report: Report) -> Markup:
    """Render everything between the title and the end, with the script that makes it move."""
    rows = report.rows
    return render(
        "body.html",
        warnings=list(_warnings(report)),
        parts=[_part(part, report) for part in report.parts],
        tier_heads=_TIER_HEADS,
        rows=rows,
        details=_details_of(report),
        comparison=None if report.comparison is None else compared.table(report.comparison),
        made_with=[_made_with(run) for run in report.runs.values()],
        script=asset("page.js"),
        first=advice.first,
        columns=table.columns(rows),
        numbers=table.NUMBERS,
        lazy_above=details.MANY,
        counted=table.counted,
        found_by=table.found_by,
        sort_value=table.sort_value,
    )


def _details_of(report: Report) -> Callable[[GroupResult], Markup]:
    """What opens below a row; of very many groups those that do not fit have details first."""
    runs, many = report.runs, len(report.rows) > details.MANY
    ordered = sorted(report.rows, key=lambda row: table.sort_value(row, "verdict"))
    shown = {row.key for row in ordered[:LARGE]}

    def opened(row: GroupResult) -> Markup:
        if row.key in shown:
            return details.details(row, runs.get(row.run), report.folder, many=many)
        folder = "" if row.folder is None else details.link(row.folder.path, report.folder)
        return Markup(macro("groups.html", "elsewhere")(folder))

    return opened


def write(report: Report) -> None:
    """Write the page.

    Raises:
        OSError: it cannot be written.
    """
    write_text(report.folder / report.name, document(report))


def document(report: Report) -> str:
    """Render a whole page."""
    now, style = f"{datetime.now():%d %B %Y, %H:%M}", asset("style.css")
    return render("page.html", report=report, style=style, now=now, version=__version__, body=body(report)) + "\n"


# --- on top


def _warnings(report: Report) -> Iterator[tuple[str, str, str]]:
    """What a reader must not overlook, as kind, head and text: numbers that nobody measured, groups without a verdict,
    a run that goes on.
    """  # noqa: D205
    simulated = [row for row in report.rows if SIMULATED in (row.evidence.device.driver_version or "")]
    if simulated:
        which = plural(len(simulated), "group")
        yield "loud", "SIMULATED NVML:", f" {which} ran on a make-believe GPU of the tests. No number here is real."
    for part in report.parts:
        missing = part.plan_verdict.missing()
        if missing:
            head, _, rest = missing.partition(":")
            yield "", f"{head}:", f"{rest}{_of(part, report)}"
        over = over_budget_text(part.counting)
        if over is not None:
            yield "", "OVER BUDGET:", f" {over}{_of(part, report)}. A budget changes no verdict."
    if any(row.basis == "predicted" for row in report.rows):
        text = " these verdicts rest on a simulated allocator and its error bars, not on a GPU. "
        yield "", "PREDICTED:", text + "Measure before you rely on them."
    smaller = [row for row in report.rows if row.evidence.device.balloon is not None]
    if smaller:
        names = ", ".join(dict.fromkeys(str(row.device_name) for row in smaller))
        yield "", "A SMALLER GPU ON A LARGER ONE:", f" {plural(len(smaller), 'group')} ran on {names}. {_CONSTRAINED}"
    for part in report.parts:
        for run in part.runs:
            if run.goes_on:
                yield "", "NOT ENDED:", f" {run.name} goes on, or was cut off before it could say so."
        again = [name for name, found in _outcomes(part).items() if len(found) > 1]
        if again:
            text = f" {', '.join(_few(again))}{_of(part, report)}. The last one counts; all are in the table."
            yield "", "SEVERAL RUNS DISAGREE:", text


def _few(names: Sequence[str]) -> list[str]:
    more = len(names) - advice.MOST_ENTRIES
    return list(names) if more <= 0 else [*names[: advice.MOST_ENTRIES], f"{more} more"]


def _outcomes(part: Part) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in part.results:
        found.setdefault(row.group, set()).add(str(row.outcome))
    return found


def _of(part: Part, report: Report) -> str:
    return f" on {_gpu_name(part)}" if len(report.parts) > 1 else ""


def _gpu_name(part: Part) -> str:
    names = dict.fromkeys(row.device_name for row in part.results if row.device_name)
    return ", ".join(names) or "no GPU"


def _part(part: Part, report: Report) -> dict[str, Any]:
    """What the templates show of one part."""
    found = what_next(part)
    records = [RunDirectory(run.path).record for run in part.runs]
    undecided = [row.group for row in found.undecided]
    # Predicting again comes to the same range.
    measure = all(row.codes == ("undecided",) and row.basis == "predicted" for row in found.undecided)
    return {
        "label": f"{part.plan_name} on {_gpu_name(part)}",
        "kind": {"holds": "v-ok", "fails": "v-bad"}.get(part.plan_verdict.holding, "v-warn"),
        "headline": headline(part),
        "standing": list(filter(None, _standing(part))),
        "files": list(_files(part, report.folder)),
        "probe": next((details.link(record, report.folder) for record in records if record.exists()), ""),
        "place": ", ".join(run.place for run in part.runs),
        "tiles": list(tiles(part)),
        "picture": peak_chart.picture(part.counting, highest=len(report.rows) > LARGE),
        "tiers": list(_tiers(part)),
        "count": len(part.results),
        "stress": advice.stress(part),
        "next": found,
        "measure": measure,
        "again": details.again(undecided, part.runs[-1], measure=measure) if part.runs else "",
        "needs": advice.needs(part),
        "remedies": advice.remedies(part),
        "command": advice.next_command(part, found),
    }


def headline(part: Part) -> str:
    """Say the plan's verdict in one sentence."""
    plan_verdict, gpu = part.plan_verdict, part.gpu_bytes
    size = "a GPU" if gpu is None else _with_article(format_size(gpu) + " GPU")
    verb = "can share" if plan_verdict.total else "share"
    bases = {row.basis for row in part.results}
    if bases <= {"predicted", None} and "predicted" in bases:
        verb = "are predicted to share"
    elif plan_verdict.complete:
        verb = "share"
    counts = {
        "inconclusive": plan_verdict.count(Outcome.INCONCLUSIVE),
        "without a verdict": len(plan_verdict.without_verdict),
    }
    others = "".join(f", {number} {how}" for how, number in counts.items() if number)
    found = f"{plan_verdict.feasible} of {plan_verdict.total} groups {verb} {size}{others}"
    return f"{found}; {plan_verdict.needed} needed: the plan {plan_verdict.holding}"


def _with_article(words: str) -> str:
    vowel = words.startswith(("8", "11 ", "18 "))
    return f"{'an' if vowel else 'a'} {words}"


def _standing(part: Part) -> Iterator[str | None]:
    """Basis, GPU, driver, date and time."""
    begun = filter(None, (instant(run.started_at) for run in part.runs))
    started = min(begun, default=None, key=lambda at: at.timestamp())
    known = [duration for run in part.runs if (duration := run.duration_s) is not None]
    yield basis_of(part.results)
    yield f"driver {part.driver}" if part.driver else None
    yield None if started is None else f"{started.astimezone():%d %B %Y, %H:%M}"
    yield f"groups took {duration_text(sum(known))}" if known else None
    yield ", ".join(run.name for run in part.runs)


def _files(part: Part, folder: Path) -> Iterator[tuple[str, str]]:
    """The files of the runs beside the page, as text and address."""
    for run in part.runs:
        beside = f" of {run.name}" if len(part.runs) > 1 else ""
        if (summary := RunDirectory(run.path).summary).exists():
            yield f"summary.csv{beside}", details.link(summary, folder)
        junit = re.search(r"--junit-?xml[= ](\S+)", " ".join(run.info.arguments))
        if junit and (path := run.path.parents[1] / junit[1]).parent.is_dir():  # written after this page
            yield f"JUnit{beside}", details.link(path, folder)
        yield f"records and logs{beside}", details.link(run.path, folder)


def tiles(part: Part) -> Iterator[tuple[str, str, str]]:
    """The numbers that one asks for first, as number, text and class."""
    plan_verdict, rows = part.plan_verdict, part.counting
    yield f"{plan_verdict.feasible} of {plan_verdict.total}", "feasible", "v-ok" if plan_verdict.feasible else ""
    for outcome, kind in ((Outcome.INFEASIBLE, "v-bad"), (Outcome.INCONCLUSIVE, "v-warn")):
        count = plan_verdict.count(outcome)
        yield str(count), outcome.lower(), kind if count else ""
    peaks = [row for row in rows if carries_peak(row)]
    if peaks:
        highest = max(peaks, key=lambda row: row.peak_bytes or 0)
        yield peak_text(highest), f"highest peak, {highest.group}", ""
    rooms = [(row.headroom_bytes, row) for row in peaks if row.headroom_bytes is not None]
    if rooms:
        _, least = min(rooms, key=lambda one: one[0])
        yield headroom_text(least), f"least headroom, {least.group}", ""
    yield format_mib(part.limit_bytes), f"limit, of {format_mib(part.gpu_bytes)}", ""
    known = [joules for row in part.results if (joules := row.evidence.gpu_energy_j) is not None]
    if known:
        of = "" if len(known) == len(part.results) else f", {len(known)} of {len(part.results)} groups"
        yield energy_text(sum(known)), f"energy of the GPU{of}", ""


def _tiers(part: Part) -> Iterator[tuple[Any, ...]]:
    """What the plan expects of every tier, against what came out."""
    names = list(dict.fromkeys(row.tier for row in part.results if row.tier))
    plans = [run.plan.tiers for run in part.runs]
    order = list(next(filter(None, plans), {}))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    for name in names:
        rate = next((plan[name] for plan in plans if name in plan), None)
        outcomes = [part.plan_verdict.outcomes.get(row.group) for row in part.counting if row.tier == name]
        yield _tier(name, rate, outcomes)


def _tier(name: str, rate: float | None, outcomes: Sequence[str | None]) -> tuple[Any, ...]:
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
    return name, total, expected, share, infeasible, open_, macro("macros.html", "tone")(kind, came)


# --- below the groups


def _made_with(run: StoredRun) -> str:
    versions = dict(run.info.versions)
    for row in run.results:
        versions = {**row.evidence.versions, **versions}
        if row.evidence.torch is not None:
            versions.setdefault("torch", row.evidence.torch)
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{run.name}: {shown}." if shown else run.name


def polished(html: str) -> str:
    """Make a page of pytest-html fit for a phone and for a screen reader, and drop the commas of hidden counts."""
    meta = '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    html = html.replace("<html>", '<html lang="en">', 1)
    html = html.replace('<meta charset="utf-8"/>', f'<meta charset="utf-8"/>\n    {meta}', 1)
    html = html.replace("  <body>\n", "  <body>\n  <main>\n", 1).replace("  <footer>\n", "  </main>\n  <footer>\n", 1)
    return re.sub(r'(<span class="\w+">\d+ [A-Z][a-z ]+),</span>', r"\1</span>", html)
