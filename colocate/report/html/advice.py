# SPDX-License-Identifier: Apache-2.0
"""What stands below the groups: what they needed, what could be tried and was, how far they are from breaking.

Everything stands in the run directory; nothing is predicted or run while a page is made.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from colocate.advice import NOT_YET, Answer, Next, Stress
from colocate.report.html.peak_shares import own_bytes
from colocate.report.html.templating import macro
from colocate.results import GroupResult, Part, advice_files, headroom_text, peak_text
from colocate.units import format_mib, span_text
from colocate.verdict import Outcome

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
        {"row": row, "needed": needed(row), "proposals": list(_proposals(proposed[row.run].get(row.group), row))}
        for row in part.counting
        if row.outcome == Outcome.INFEASIBLE
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
        "left": sum(one["not_yet"] for one in offered),
        "more": f"colocate report {part.runs[-1].place} --predict",
    }


def _proposals(entry: advice_files.Proposals | None, row: GroupResult) -> Iterator[dict[str, Any]]:
    """Those for the group as this row has it, not as an earlier session of the run had it."""
    for one in entry.proposals if entry is not None and entry.content_hash == row.content_hash else ():
        span = "" if one.peak is None else span_text(one.peak.low_bytes, one.peak.high_bytes)
        yield {
            "proposal": one,
            "forecast": f"{span} MiB: {one.answer}" if span else "",
            "kind": _KINDS.get(one.answer or "", "v-warn"),
            "why_not": one.why_not if one.peak is None and one.why_not != NOT_YET else None,
            "not_yet": one.why_not == NOT_YET,
        }


def needed(row: GroupResult) -> str:
    """Say what a group needed, and who needed it."""
    peak, limit, evidence = row.peak_bytes, row.limit_bytes, row.evidence
    if peak is None or limit is None:
        return "what it would have needed is not known"
    sizes = [(member.name, own_bytes(row, member.role)) for member in evidence.members]
    sizes.append(("baseline", evidence.baseline_bytes or None))
    held = [f"{name} {format_mib(size)}" for name, size in sizes if size is not None]
    over = f", {format_mib(peak - limit, beside=0)} above the limit" if peak > limit else f" of {format_mib(limit)}"
    verb = "is expected to need"
    if row.basis == "measured":
        verb = "needed at least" if any(code.endswith("out_of_memory") for code in row.codes) else "needed"
    return f"{verb} {format_mib(peak, beside=limit)}{over}" + (f": {', '.join(held)}" if held else "")


# --- what was tried


def remedies(part: Part) -> list[dict[str, Any]]:
    """Every group for which something was tried: before and after, and the settings to copy."""
    tried = {run.name: run.remedies for run in part.runs}
    entries = [(row, tried[row.run].get(row.group)) for row in part.counting]
    # Those for the groups as these rows have them, not as an earlier session of the run had them.
    return [
        _remedies_of(row, entry)
        for row, entry in entries
        if entry is not None and entry.tried and entry.content_hash == row.content_hash
    ]


def _remedies_of(row: GroupResult, entry: advice_files.Remedies) -> dict[str, Any]:
    holds = entry.holds
    remedy = entry.tried[holds] if holds is not None and 0 <= holds < len(entry.tried) else None
    rows = [_tried("as planned", entry.before, "", "")]
    rows += [
        _tried(f"{one.training}: {one.settings}", one.after, _predicted(one), one.directory or "")
        for one in entry.tried
    ]
    return {
        "row": row,
        "said": f"fits with {remedy.settings}" if remedy else f"none of {len(entry.tried)} holds",
        "heads": _REMEDY_HEADS,
        "rows": rows,
        "member": json.dumps(remedy.member, indent=2, ensure_ascii=False) if remedy else "",
    }


def _tried(name: str, figures: advice_files.Figures, predicted: str, directory: str) -> tuple[Any, ...]:
    text = f"{figures.outcome} ({figures.basis})" + (f": {', '.join(figures.codes)}" if figures.codes else "")
    reported = macro("advice.html", "reported")(figures.outcome, text)
    folder = macro("advice.html", "record")(directory)
    return name, reported, peak_text(figures), headroom_text(figures), predicted, folder


def _predicted(tried: advice_files.Tried) -> str:
    peak, answer = tried.peak, tried.answer or ""
    return answer if peak is None else f"{format_mib(peak.low_bytes)} to {format_mib(peak.high_bytes)}: {answer}"


# --- the distance to the breaking point


def stress(part: Part) -> dict[str, Any] | None:
    """How much more could be taken beside what subtraction says; None where no group was stressed."""
    read = [(row, Stress.read(row.folder)) for row in part.counting if row.folder is not None]
    found = [(row, one) for row, one in read if one is not None]
    if not found:
        return None
    return {
        "basis": "predicted on virtual GPUs" if found[0][1].basis == "predicted" else "measured",
        "heads": _STRESS_HEADS,
        "rows": [_stressed(row, one) for row, one in found],
    }


def _stressed(row: GroupResult, found: Stress) -> tuple[Any, ...]:
    why = "; ".join(filter(None, (found.broke_by, found.unfinished)))
    broke = format_mib(found.breaks_bytes, "not seen")
    return (
        macro("macros.html", "link")(row.group, f"#{row.key}"),
        peak_text(row),
        headroom_text(row),
        format_mib(found.holds_bytes),
        f"{broke} ({why})" if why else broke,
        row.memory_class or "",
        found.memory_class,
    )


# --- what next


def next_command(part: Part, found: Next) -> str | None:
    """The command that makes a plan of what fits; None where nothing does."""
    if not found.feasible or not part.runs:
        return None
    return f"colocate next {part.runs[-1].place}" + ("" if found.recommended else " --class=high-risk")
