# SPDX-License-Identifier: Apache-2.0
"""What stands below the groups: what they needed, what could be tried and was, how far they are from breaking.

Everything stands in the run directory; nothing is predicted or run while a page is made.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from colocate.advice import OUT_OF_TIME, Answer, Next, Stress
from colocate.plan import ROLES
from colocate.report.html.peak_shares import own_bytes
from colocate.report.html.templating import macro
from colocate.results import NO_FACTS, Part, Row, headroom_text, mapping, number, peak_text
from colocate.units import format_mib, span_text
from colocate.verdict import Outcome

Facts = Mapping[str, Any]
Entry = TypeVar("Entry")

# More entries of a list than these are not read; the table has all.
MOST_ENTRIES = 50

_KINDS = {Answer.FITS.value: "v-ok", Answer.DOES_NOT_FIT.value: "v-bad"}
_REMEDY_HEADS = ("setting", "verdict", "peak", "headroom", "predicted", "record")
_STRESS_HEADS = (
    "group",
    "peak",
    "headroom, subtracted",
    "held with less by",
    "broke with less by",
    "class",
    "effective class",
)


def first(entries: Sequence[Entry]) -> Sequence[Entry]:
    """Return the beginning of a long list; all of it where it is no longer than what one reads through."""
    return entries[:MOST_ENTRIES] if len(entries) > 2 * MOST_ENTRIES else entries


# --- what they needed, and what could be tried


def needs(part: Part) -> dict[str, Any] | None:
    """Every infeasible group with its proposals, the cheapest first; None where none is."""
    proposed = {run.name: run.proposals for run in part.runs}
    found: list[dict[str, Any]] = [
        {"row": row, "needed": needed(row), "proposals": list(_proposals(proposed.get(row.run, NO_FACTS), row))}
        for row in part.counting
        if row.record["outcome"] == Outcome.INFEASIBLE
    ]
    if not found:
        return None
    offered = [one for need in found for one in need["proposals"]]
    figures = any(one["forecast"] for one in offered)
    intro = "What they would have needed, and what could be tried, the cheapest first."
    if figures:
        intro += " The peaks of proposals are predicted on a virtual GPU, not measured."
    elif not offered:
        intro = "What they would have needed; this command says what could be tried."
    return {
        "intro": intro,
        "found": found,
        "figures": figures or bool(offered),
        "left": sum(one["out_of_time"] for one in offered),
        "more": f"colocate report {part.runs[-1].place} --predict",
    }


def _proposals(proposed: Facts, row: Row) -> Iterator[dict[str, Any]]:
    """Those for the group as this row has it, not as an earlier session of the run had it."""
    entry = mapping(proposed.get(row.group))
    if entry.get("content_hash") != row.content_hash:
        return
    for one in map(mapping, entry.get("proposals") or ()):
        peak, answer, why_not = mapping(one.get("peak")), str(one.get("answer")), one.get("why_not")
        low, high = number(peak.get("low_bytes")), number(peak.get("high_bytes"))
        known = low is not None and high is not None
        yield {
            "name": one.get("training"),
            "settings": one.get("settings"),
            "why": one.get("why"),
            "text": one.get("text"),
            "forecast": f"{span_text(low, high)} MiB: {answer}" if low is not None and high is not None else "",
            "kind": _KINDS.get(answer, "v-warn"),
            "why_not": None if known or why_not == OUT_OF_TIME else why_not,
            "out_of_time": why_not == OUT_OF_TIME,
        }


def needed(row: Row) -> str:
    """Say what a group needed, and who needed it."""
    record = row.record
    peak, limit = number(record["peak_bytes"]), number(record["limit_bytes"])
    if peak is None or limit is None:
        return "what it would have needed is not known"
    held = [f"{row.record[role]} {format_mib(size)}" for role in ROLES if (size := own_bytes(row, role)) is not None]
    if row.baseline_bytes:
        held.append(f"baseline {format_mib(row.baseline_bytes)}")
    over = f", {format_mib(peak - limit, beside=0)} above the limit" if peak > limit else f" of {format_mib(limit)}"
    verb = "is expected to need"
    if record["basis"] == "measured":
        verb = "needed at least" if any(code.endswith("out_of_memory") for code in record["codes"]) else "needed"
    return f"{verb} {format_mib(peak, beside=limit)}{over}" + (f": {', '.join(held)}" if held else "")


# --- what was tried


def remedies(part: Part) -> list[dict[str, Any]]:
    """Every group for which something was tried: before and after, and the settings to copy."""
    tried = {run.name: run.remedies for run in part.runs}
    entries = [(row, mapping(mapping(tried.get(row.run)).get(row.group))) for row in part.counting]
    # Those for the groups as these rows have them, not as an earlier session of the run had them.
    return [
        _remedies_of(row, entry)
        for row, entry in entries
        if entry.get("tried") and entry.get("content_hash") == row.content_hash
    ]


def _remedies_of(row: Row, entry: Facts) -> dict[str, Any]:
    tried = list(map(mapping, entry["tried"]))
    holds = number(entry.get("holds"))
    remedy = tried[holds] if holds is not None and holds < len(tried) else None
    rows = [_tried("as planned", mapping(entry.get("before")), "", "")]
    rows += [
        _tried(
            f"{one.get('training')}: {one.get('settings')}",
            mapping(one.get("after")),
            _predicted(mapping(one.get("predicted"))),
            str(one.get("directory") or ""),
        )
        for one in tried
    ]
    return {
        "row": row,
        "said": f"fits with {remedy.get('settings')}" if remedy else f"none of {len(tried)} holds",
        "heads": _REMEDY_HEADS,
        "rows": rows,
        "member": json.dumps(remedy.get("member"), indent=2, ensure_ascii=False) if remedy else "",
    }


def _tried(name: str, figures: Facts, predicted: str, directory: str) -> tuple[Any, ...]:
    record = {"peak_low_bytes": None, "peak_high_bytes": None, "peak_bytes": None, "headroom_bytes": None, **figures}
    record |= {"outcome": str(figures.get("outcome") or ""), "codes": figures.get("codes") or ()}
    codes = ", ".join(map(str, record["codes"]))
    text = f"{record['outcome']} ({figures.get('basis')})" + (f": {codes}" if codes else "")
    reported = macro("advice.html", "reported")(record["outcome"], text)
    return (
        name,
        reported,
        peak_text(record),
        headroom_text(record),
        predicted,
        macro("advice.html", "record")(directory),
    )


def _predicted(reported: Facts) -> str:
    peak = mapping(reported.get("peak"))
    low, high = number(peak.get("low_bytes")), number(peak.get("high_bytes"))
    answer = str(reported.get("answer") or "")
    return answer if low is None or high is None else f"{format_mib(low)} to {format_mib(high)}: {answer}"


# --- the distance to the breaking point


def stress(part: Part) -> dict[str, Any] | None:
    """How much more could be taken beside what subtraction says; None where no group was stressed."""
    read = [(row, Stress.read(row.directory)) for row in part.counting if row.directory is not None]
    found = [(row, one) for row, one in read if one is not None]
    if not found:
        return None
    return {
        "basis": "predicted on virtual GPUs" if found[0][1].basis == "predicted" else "measured",
        "heads": _STRESS_HEADS,
        "rows": [_stressed(row, one) for row, one in found],
    }


def _stressed(row: Row, found: Stress) -> tuple[Any, ...]:
    why = "; ".join(filter(None, (found.broke_by, found.unfinished)))
    broke = format_mib(found.breaks_bytes, "not seen")
    return (
        macro("macros.html", "link")(row.group, f"#{row.key}"),
        peak_text(row.record),
        headroom_text(row.record),
        format_mib(found.holds_bytes),
        f"{broke} ({why})" if why else broke,
        row.record["memory_class"] or "",
        found.memory_class,
    )


# --- what next


def next_command(part: Part, found: Next) -> str | None:
    """The command that makes a plan of what fits; None where nothing does."""
    if not found.feasible or not part.runs:
        return None
    return f"colocate next {part.runs[-1].place}" + ("" if found.recommended else " --class=high-risk")
