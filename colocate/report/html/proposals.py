"""The section for groups that do not fit or may not: what they needed, who needed it, and what could be tried.

Everything stands in the run directory; nothing is predicted while a page is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from colocate.advice import OUT_OF_TIME, Answer, is_unfit
from colocate.plan import ROLES
from colocate.report.html import large_table
from colocate.report.html.elements import Html, el
from colocate.report.html.peak_chart import pair
from colocate.report.html.peak_shares import own_bytes
from colocate.results import NO_FACTS, Part, Row, colour, mapping, number
from colocate.units import format_mib, plural, span_text

_COLOURS = {Answer.FITS.value: "v-ok", Answer.DOES_NOT_FIT.value: "v-bad"}


@dataclass(frozen=True)
class Needs:
    """What a group would have needed, and what could be tried, the cheapest first, as in ``proposals.json``."""

    row: Row
    needed: str
    proposals: tuple[Mapping[str, Any], ...]


def section(part: Part) -> Html | None:
    """Every such group with its proposals, the cheapest first; None where all fit."""
    found = needs(part)
    if not found:
        return None
    figures = any(one.get("peak") for need in found for one in need.proposals)
    intro = "What they would have needed, and what could be tried, the cheapest first."
    if figures:
        intro += " The peaks of proposals are predicted on a virtual GPU, not measured."
    elif not any(need.proposals for need in found):
        intro = f"What they would have needed; {_more(part)} says what could be tried."
    left = sum(one.get("why_not") == OUT_OF_TIME for need in found for one in need.proposals)
    return el(
        "section",
        el("h2", "For the infeasible and the undecided"),
        el("p", intro, class_="muted"),
        el("ul", [_entry(need) for need in large_table.first(found)], class_="needs"),
        el("p", f"For {plural(left, 'proposal')} there was no time; ", el("code", _more(part)), " predicts them too.")
        if left
        else None,
        large_table.rest(found),
    )


def _more(part: Part) -> str:
    """The command that predicts what is not predicted yet."""
    return f"colocate report {part.runs[-1].place} --predict"


def _entry(need: Needs) -> Html:
    row = need.row
    badge = el("span", row.record["outcome"], class_=f"badge {colour(row.record['outcome'])}")
    head = el("p", el("a", row.group, href=f"#{row.key}"), " ", badge, " ", pair(row), " ", need.needed, ".")
    return el("li", head, el("ol", [_proposal(one) for one in need.proposals]) if need.proposals else None)


def _proposal(one: Mapping[str, Any]) -> Html:
    """The setting to copy, what it means, and what is predicted of it."""
    name, settings, why = one.get("training"), one.get("settings"), one.get("why")
    text = el("span", f"{name}: " if name else "", el("code", settings), f" {why}") if settings else str(one["text"])
    return el("li", text, " ", _figure(one))


def _figure(one: Mapping[str, Any]) -> Html | None:
    peak, answer = mapping(one.get("peak")), one.get("answer")
    low, high = number(peak.get("low_bytes")), number(peak.get("high_bytes"))
    if low is None or high is None:
        why_not = one.get("why_not")
        known = why_not and why_not != OUT_OF_TIME
        return el("span", f"not predicted: {why_not}", class_="muted") if known else None
    text = f"{span_text(low, high)} MiB: {answer}"
    return el("b", text, class_=f"forecast {_COLOURS.get(str(answer), 'v-warn')}")


# --- what they needed


def needs(part: Part) -> list[Needs]:
    """What every group that does not fit, or may not, would have needed."""
    proposed = {run.name: run.proposals for run in part.runs}
    return [
        Needs(row, _needed(row), _proposals(proposed.get(row.run, NO_FACTS), row))
        for row in part.counting
        if is_unfit(row.record)
    ]


def _proposals(proposed: Mapping[str, Any], row: Row) -> tuple[Mapping[str, Any], ...]:
    """Those for the group as this row has it, not as an earlier session of the run had it."""
    entry = mapping(proposed.get(row.group))
    same = entry.get("content_hash") == row.content_hash
    return tuple(map(mapping, entry.get("proposals") or ())) if same else ()


def _needed(row: Row) -> str:
    record = row.record
    peak, limit = number(record["peak_bytes"]), number(record["limit_bytes"])
    if peak is None or limit is None:
        return "what it would have needed is not known"
    gpu_processes = [
        f"{row.record[role]} {format_mib(size)}" for role in ROLES if (size := own_bytes(row, role)) is not None
    ]
    if row.baseline_bytes:
        gpu_processes.append(f"baseline {format_mib(row.baseline_bytes)}")
    over = f", {format_mib(peak - limit, beside=0)} above the limit" if peak > limit else f" of {format_mib(limit)}"
    verb = "is expected to need"
    if record["basis"] == "measured":
        verb = "needed at least" if any(code.endswith("out_of_memory") for code in record["codes"]) else "needed"
    return f"{verb} {format_mib(peak, beside=limit)}{over}" + (f": {', '.join(gpu_processes)}" if gpu_processes else "")
