# SPDX-License-Identifier: Apache-2.0
"""Texts for numbers and verdicts, the same in terminal and page."""

from collections import Counter
from collections.abc import Iterable

from colocate.results.schema import Record
from colocate.units import format_mib, plural, span_text
from colocate.verdict import Outcome, ReasonCode

# An inconclusive group's peak counts where it is the peak that leaves the answer open.
_PEAK_COUNTS = frozenset(
    {ReasonCode.UNDECIDED, ReasonCode.PEAK_BETWEEN_SAMPLES, ReasonCode.SPREAD, ReasonCode.RUNS_MISSING}
)

_COLOURS = {Outcome.FEASIBLE.value: "v-ok", Outcome.INFEASIBLE.value: "v-bad"}


def colour(outcome: str) -> str:
    """The class that colours an outcome."""
    return _COLOURS.get(outcome, "v-warn")


def carries_peak(record: Record) -> bool:
    """Tell whether a peak stands for something: nothing carries that of a group whose evidence has a hole."""
    if record["peak_bytes"] is None:
        return False
    return record["outcome"] != Outcome.INCONCLUSIVE or bool(_PEAK_COUNTS & set(record["codes"]))


def peak_text(record: Record) -> str:
    """The GPU's peak: one number when measured, the interval when predicted; empty where nothing carries it."""
    if not carries_peak(record):
        return ""
    low, high, limit = record["peak_low_bytes"], record["peak_high_bytes"], record.get("limit_bytes")
    if low is None or high is None or low == high:
        return format_mib(record["peak_bytes"], beside=limit)
    return f"{span_text(low, high, beside=limit)} MiB"


def headroom_text(record: Record) -> str:
    """Limit minus peak, below zero when the peak is over the limit; empty where nothing carries the peak."""
    if not carries_peak(record):
        return ""
    return format_mib(record["headroom_bytes"], beside=0)


def over_budget_bytes(record: Record) -> int | None:
    """Return by how much the peak exceeds the plan's budget, or None if it does not or is not known."""
    budget, peak = record.get("budget_bytes"), record.get("peak_bytes")
    return peak - budget if isinstance(budget, int) and isinstance(peak, int) and peak > budget else None


def over_budget_text(records: Iterable[Record]) -> str | None:
    """The groups over their budget, the furthest first, and by how much; None where none is."""
    found = [(over, record) for record in records if (over := over_budget_bytes(record)) is not None]
    found.sort(key=lambda one: -one[0])
    named = ", ".join(f"{record['group']} by {format_mib(over, beside=0)}" for over, record in found)
    return f"{plural(len(found), 'group')} over budget: {named}" if found else None


def judged_text(record: Record) -> str:
    """Format a verdict, such as ``FEASIBLE (measured)``; without a basis if nothing was started."""
    return f"{record['outcome']} ({record['basis']})" if record["basis"] else str(record["outcome"])


def line_of(record: Record) -> str:
    """Format a group on one line of at most 80 columns: verdict, basis, peak and headroom."""
    if record["outcome"] not in set(Outcome):
        return f"{record['group']} {record['outcome']}"
    known = [f"peak {peak_text(record)}", f"headroom {headroom_text(record)}"] if carries_peak(record) else []
    over = over_budget_bytes(record)
    if over is not None:
        known.append(f"{format_mib(over, beside=0)} over budget")
    if record.get("reused"):
        known.append("reused")
    return f"{record['group']} {judged_text(record)} {', '.join(known)}".rstrip()


def basis_of(records: Iterable[Record]) -> str:
    """Say what the verdicts of a run rest on, such as ``measured on NVIDIA RTX A2000``."""
    judged = [record for record in records if record["basis"]]
    if not judged:
        return "none: nothing was judged"
    kinds = Counter(record["basis"] for record in judged)
    names = ", ".join(dict.fromkeys(record["device_name"] for record in judged if record["device_name"]))
    words = ", ".join(kind if len(kinds) == 1 else f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return words + (f" on {names}" if names else "")
