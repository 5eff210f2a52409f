# SPDX-License-Identifier: Apache-2.0
"""Texts for numbers and verdicts, the same in terminal and page."""

from collections import Counter
from collections.abc import Iterable

from colocate.results.advice_files import Figures
from colocate.results.group_result import GroupResult
from colocate.units import format_mib, plural, span_text
from colocate.verdict import Outcome, ReasonCode, Verdict

# An inconclusive group's peak counts where it is the peak that leaves the answer open.
_PEAK_COUNTS = frozenset(
    {ReasonCode.UNDECIDED, ReasonCode.PEAK_BETWEEN_SAMPLES, ReasonCode.SPREAD, ReasonCode.RUNS_MISSING}
)

Peaks = GroupResult | Verdict | Figures
"""What says how a group ended, with its peak."""

_COLOURS = {Outcome.FEASIBLE.value: "v-ok", Outcome.INFEASIBLE.value: "v-bad"}


def colour(outcome: str | None) -> str:
    """The class that colours an outcome."""
    return _COLOURS.get(outcome or "", "v-warn")


def carries_peak(result: Peaks) -> bool:
    """Tell whether a peak stands for something: nothing carries that of a group whose evidence has a hole."""
    if result.peak_bytes is None:
        return False
    return result.outcome != Outcome.INCONCLUSIVE or bool(_PEAK_COUNTS & set(result.codes))


def peak_text(result: Peaks) -> str:
    """The GPU's peak: one number when measured, the interval when predicted; empty where nothing carries it."""
    if not carries_peak(result):
        return ""
    low, high, limit = result.peak_low_bytes, result.peak_high_bytes, result.limit_bytes
    if low is None or high is None or low == high:
        return format_mib(result.peak_bytes, beside=limit)
    return f"{span_text(low, high, beside=limit)} MiB"


def headroom_text(result: Peaks) -> str:
    """Limit minus peak, below zero when the peak is over the limit; empty where nothing carries the peak."""
    if not carries_peak(result):
        return ""
    return format_mib(result.headroom_bytes, beside=0)


def over_budget_bytes(result: GroupResult) -> int | None:
    """Return by how much the peak exceeds the plan's budget, or None if it does not or is not known."""
    budget, peak = result.budget_bytes, result.peak_bytes
    return peak - budget if budget is not None and peak is not None and peak > budget else None


def over_budget_text(results: Iterable[GroupResult]) -> str | None:
    """The groups over their budget, the furthest first, and by how much; None where none is."""
    found = [(over, result) for result in results if (over := over_budget_bytes(result)) is not None]
    found.sort(key=lambda one: -one[0])
    named = ", ".join(f"{result.group} by {format_mib(over, beside=0)}" for over, result in found)
    return f"{plural(len(found), 'group')} over budget: {named}" if found else None


def judged_text(result: GroupResult) -> str:
    """Format a verdict, such as ``FEASIBLE (measured)``; without a basis if nothing was started."""
    return f"{result.outcome} ({result.basis})" if result.basis else str(result.outcome)


def line_of(result: GroupResult) -> str:
    """Format a group on one line of at most 80 columns: verdict, basis, peak and headroom."""
    if not result.is_judged:
        return f"{result.group} {result.outcome}"
    known = [f"peak {peak_text(result)}", f"headroom {headroom_text(result)}"] if carries_peak(result) else []
    over = over_budget_bytes(result)
    if over is not None:
        known.append(f"{format_mib(over, beside=0)} over budget")
    if result.reused:
        known.append("reused")
    return f"{result.group} {judged_text(result)} {', '.join(known)}".rstrip()


def basis_of(results: Iterable[GroupResult]) -> str:
    """Say what the verdicts of a run rest on, such as ``measured on NVIDIA RTX A2000``."""
    judged = [result for result in results if result.basis]
    if not judged:
        return "none: nothing was judged"
    kinds = Counter(str(result.basis) for result in judged)
    names = ", ".join(dict.fromkeys(result.device_name for result in judged if result.device_name))
    words = ", ".join(kind if len(kinds) == 1 else f"{number} {kind}" for kind, number in sorted(kinds.items()))
    return words + (f" on {names}" if names else "")
